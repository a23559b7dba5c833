"""A graph and a plan before a pass, to be compared with what it left."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx as fx

from hadamard_fx.errors import PassEffectError
from hadamard_fx.plan import Plan

from .base import Effect
from .laws import source_near

__all__ = ["Snapshot", "describe_change"]


@dataclass(frozen=True)
class Snapshot:
    """The state before a pass.

    Attributes:
        nodes: all of them, in order.
        plan: the decisions.
        texts: of each node, what it computes of what; only for a pass that is not trusted.
        results: of each result, its shape and dtype; likewise.
    """

    nodes: tuple[fx.Node, ...]
    plan: Plan | None
    texts: dict[fx.Node, tuple[Any, ...]] = field(default_factory=dict)
    results: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, graph: fx.Graph, plan: Plan | None, wary: bool) -> Snapshot:
        """Of ``graph`` and ``plan``; ``wary``: so that every change can be told."""
        nodes = tuple(graph.nodes)
        return cls(nodes, plan, {node: _text(node) for node in nodes}, _results(graph)) if wary else cls(nodes, plan)

    def fresh(self, graph: fx.Graph) -> tuple[fx.Node, ...]:
        """The nodes of ``graph`` that were not there, in order."""
        there = frozenset(self.nodes)
        return tuple(node for node in graph.nodes if node not in there)

    def check(self, name: str, effect: Effect, written: str, graph: fx.Graph, plan: Plan | None) -> None:
        """Hold a pass to its effect.

        Raises:
            PassEffectError: it decides or observes, and edited the graph; or it rewrites, and the results differ.
        """
        if effect is not Effect.REWRITES:
            for node in self._edited(graph):
                raise PassEffectError(
                    name, written, f"{effect.value} and edited the graph", node.name, source_near(node)
                )
            return
        found = _results(graph)
        for number, (was, now) in enumerate(zip(self.results, found, strict=False)):
            if was != now:
                detail = f"turned result {number} of the graph from {' '.join(was)} into {' '.join(now)}"
                raise PassEffectError(name, written, detail)
        if len(found) != len(self.results):
            detail = f"left {len(found)} results of the graph, where there were {len(self.results)}"
            raise PassEffectError(name, written, detail)

    def _edited(self, graph: fx.Graph) -> Iterator[fx.Node]:
        now = tuple(graph.nodes)
        yield from (node for node in now if node not in self.texts or self.texts[node] != _text(node))
        here = frozenset(now)
        yield from (node for node in self.nodes if node not in here)
        if now != self.nodes:
            yield next(node for node, was in zip(now, self.nodes, strict=True) if node is not was)


def _text(node: fx.Node) -> tuple[Any, ...]:
    return node.op, node.target, repr(node.args), repr(node.kwargs), id(node.meta.get("val"))


def _results(graph: fx.Graph) -> tuple[tuple[str, str], ...]:
    """(dtype, shape) of what the graph returns; what is no tensor has a name only."""
    (outputs,) = graph.find_nodes(op="output")[0].args
    listed = outputs if isinstance(outputs, list | tuple) else (outputs,)
    return tuple(map(_result, listed))


def _result(output: Any) -> tuple[str, str]:
    value = output.meta.get("val") if isinstance(output, fx.Node) else output
    if isinstance(value, torch.Tensor):
        return str(value.dtype).removeprefix("torch."), str(list(value.shape))
    return type(value).__name__, ""


def describe_change(before: Snapshot, after: Snapshot) -> str:
    """``"4 decisions"``, ``"+12 −3 nodes"``, ``""`` where nothing changed."""
    if before.plan is not after.plan and after.plan is not None:
        old = {d.gemm.node: d for d in before.plan.decisions} if before.plan is not None else {}
        if changed := sum(old.get(d.gemm.node) != d for d in after.plan.decisions):
            return f"{changed} decision{'s' * (changed != 1)}"
    was, now = set(before.nodes), set(after.nodes)
    return f"+{len(now - was)} −{len(was - now)} nodes" if was != now else ""
