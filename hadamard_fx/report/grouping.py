"""Layers that were treated alike become one entry of the report: ``blocks.0–11.mlp.fc1``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..plan import Decision, Role

__all__ = ["LayerGroup", "Row", "group_layers", "merge_names"]

_ORDER = {Role.FORWARD: 0, Role.GRAD_INPUT: 1, Role.GRAD_WEIGHT: 2, Role.ACTIVATION: 3, Role.PARAMETERS: 4}


@dataclass(frozen=True)
class Row:
    """One product of each layer of a group; costs are sums over ``decisions``, which have all else in common."""

    decisions: tuple[Decision, ...]

    @property
    def first(self) -> Decision:
        return self.decisions[0]

    @property
    def seconds(self) -> float:
        return sum(d.cost.seconds for d in self.decisions)

    @property
    def exact_seconds(self) -> float:
        return sum(d.exact_cost.seconds for d in self.decisions)

    @property
    def saved_bytes(self) -> int:
        return sum(d.cost.saved_bytes for d in self.decisions)

    @property
    def exact_saved_bytes(self) -> int:
        return sum(d.exact_cost.saved_bytes for d in self.decisions)


@dataclass(frozen=True)
class LayerGroup:
    """Layers whose products have the same shapes, schemes and reasons."""

    layers: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        return ", ".join(merge_names(self.layers)) or "(no module)"


def group_layers(decisions: Iterable[Decision]) -> tuple[LayerGroup, ...]:
    """Decisions by layer, in the order in which the layers appear; layers treated alike are joined."""
    layers: dict[str, list[Decision]] = {}
    for decision in decisions:
        layers.setdefault(decision.gemm.layer, []).append(decision)
    groups: dict[tuple[object, ...], dict[str, list[Decision]]] = {}
    for layer, own in layers.items():
        own.sort(key=lambda d: _ORDER.get(d.gemm.role, len(_ORDER)))
        key = (_template(layer), *map(_signature, own))
        groups.setdefault(key, {})[layer] = own
    return tuple(LayerGroup(tuple(group), _rows(group)) for group in groups.values())


def _rows(group: dict[str, list[Decision]]) -> tuple[Row, ...]:
    rows: dict[object, list[Decision]] = {}
    for own in group.values():
        for decision in own:
            rows.setdefault(_signature(decision), []).append(decision)
    return tuple(Row(tuple(row)) for row in rows.values())


def _signature(decision: Decision) -> tuple[object, ...]:
    gemm = decision.gemm
    return gemm.role, gemm.batch, gemm.M, gemm.N, gemm.K, gemm.window, gemm.dtype, decision.scheme, decision.reason


def _template(layer: str) -> str:
    return re.sub(r"(?<![^.#])\d+(?![^.#])", "*", layer)


def merge_names(layers: Iterable[str]) -> tuple[str, ...]:
    """``("a.0.b", "a.1.b", "a.3.b")`` as ``("a.0–1.b", "a.3.b")``: runs of the last number that varies are joined."""
    names = list(dict.fromkeys(layers))
    numbers = [re.split(r"((?<![^.#])\d+(?![^.#]))", name) for name in names]
    width = {len(parts) for parts in numbers}
    varying = [i for i in range(1, min(width, default=0), 2) if len({parts[i] for parts in numbers}) > 1]
    if len(width) != 1 or len(varying) != 1:
        return tuple(names)
    place = varying[0]
    head, tail = "".join(numbers[0][:place]), "".join(numbers[0][place + 1 :])
    runs: list[list[int]] = []
    for number in sorted(int(parts[place]) for parts in numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return tuple(f"{head}{run[0]}{f'–{run[-1]}' if len(run) > 1 else ''}{tail}" for run in runs)
