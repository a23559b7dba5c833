"""What the alternatives of different products have in common, as ties of the knapsack.

- A launch with a key is done once for all that choose it: one compressed x for Q, K and V, one quantised weight for
  tied layers. What the forward keeps is kept once.
- One read of a gradient takes the place of the kernels that read it apart, where the schemes of both products allow it.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hadamard_fx.cost_model.device_profile import DeviceProfile
from hadamard_fx.cost_model.knapsack import Option, Tie
from hadamard_fx.cost_model.work import Work, launch_seconds
from hadamard_fx.plan import Cost
from hadamard_fx.scheme import Exact, Hadamard, LowRank

from .alternatives import Alternative, Alternatives
from .one_read import OneRead

__all__ = ["Objective", "SharedWork"]

RELIED_ON = 0.6
"""Share of the seconds predicted to be saved by one read that the choice counts on. On an H200 gradients behind
the SiLU of Llama-1B, predicted to save 0.1 ms each, came out even with the slower products that they bring."""

Member = tuple[int, int]
"""(product, alternative)."""


@dataclass(frozen=True)
class Objective:
    """What is minimised: ``seconds`` per second predicted, ``bytes`` per byte kept."""

    seconds: float = 1.0
    bytes: float = 0.0


@dataclass(frozen=True)
class SharedWork:
    """The products of a graph with all that their alternatives share.

    Attributes:
        products: with their alternatives.
        reads: what one read of each gradient would cost.
        profile: the device.
    """

    products: Sequence[Alternatives]
    reads: Sequence[OneRead]
    profile: DeviceProfile

    def items(self, objective: Objective) -> list[list[Option]]:
        """What each alternative costs by itself."""
        return [[self._own(alternative, objective) for alternative in p.choices] for p in self.products]

    def ties(self, objective: Objective) -> list[Tie]:
        """What they share."""
        ties = []
        for members in self._by_key.values():
            work = members[0][1]
            margin = min(self._at(member).margin for member, _ in members)
            price = objective.seconds * margin * self._seconds(work) + objective.bytes * float(work.kept)
            ties.append(Tie(tuple(member for member, _ in members), price, float(work.kept)))
        for pair, saved in self._savings:
            margin = min(self._at(member).margin for member in pair)
            relied_on = RELIED_ON * saved if saved > 0 else saved
            ties.append(Tie(pair, -objective.seconds * margin * relied_on, every=True))
        return ties

    def costs(self, chosen: Sequence[int]) -> list[Cost]:
        """Of each product as chosen; what is shared is split evenly among those that share it."""
        costs = [self.products[item].choices[number].cost for item, number in enumerate(chosen)]
        seconds = [self._own_seconds(self._at(member)) for member in enumerate(chosen)]
        kept = [float(cost.saved_bytes) if not self._at((n, chosen[n])).works else 0.0 for n, cost in enumerate(costs)]
        for members in self._by_key.values():
            taken = [(item, work) for (item, number), work in members if chosen[item] == number]
            for item, work in taken:
                seconds[item] += self._seconds(work) / len(taken)
                kept[item] += work.kept // len(taken)
        for pair, saved in self._savings:
            if all(chosen[item] == number for item, number in pair):
                parts = [self._read_seconds(self._at(member)) for member in pair]
                for (item, _), part in zip(pair, parts, strict=True):
                    seconds[item] -= saved * part / sum(parts)
        return [replace(cost, seconds=s, saved_bytes=int(b)) for cost, s, b in zip(costs, seconds, kept, strict=True)]

    def read_once(self, chosen: Sequence[int]) -> dict[int, float]:
        """Products whose gradient is foreseen to be read once, with the seconds that this saves for the pair."""
        return {
            item: saved
            for pair, saved in self._savings
            if saved > 0 and all(chosen[i] == n for i, n in pair)
            for item, number in pair
            if not isinstance(self._at((item, number)).scheme, Exact)
        }

    def _at(self, member: Member) -> Alternative:
        return self.products[member[0]].choices[member[1]]

    def _seconds(self, work: Work) -> float:
        return 0.0 if work.launch is None else launch_seconds(work.launch, self.profile)

    def _own_seconds(self, alternative: Alternative) -> float:
        if not alternative.works:
            return alternative.cost.seconds
        return sum(self._seconds(work) for work in alternative.works if work.shared is None)

    def _read_seconds(self, alternative: Alternative) -> float:
        return sum(self._seconds(work) for work in alternative.works if work.reads_gradient)

    def _own(self, alternative: Alternative, objective: Objective) -> Option:
        kept = 0.0 if alternative.works else float(alternative.cost.saved_bytes)
        seconds = alternative.margin * self._own_seconds(alternative)
        return Option(objective.seconds * seconds + objective.bytes * kept, kept)

    @functools.cached_property
    def _by_key(self) -> dict[Hashable, list[tuple[Member, Work]]]:
        found: dict[Hashable, list[tuple[Member, Work]]] = defaultdict(list)
        for item, product in enumerate(self.products):
            for number, alternative in enumerate(product.choices):
                for work in alternative.works:
                    if work.shared is not None:
                        found[work.shared].append(((item, number), work))
        return found

    @functools.cached_property
    def _savings(self) -> tuple[tuple[tuple[Member, ...], float], ...]:
        """Alternatives that together read a gradient once, and the seconds that this saves."""
        found = []
        place = {product.gemm.node: item for item, product in enumerate(self.products)}
        for read in self.reads:
            rows = self._readers(place.get(read.rows), Hadamard)
            tokens = self._readers(place.get(read.tokens), LowRank)
            for row, row_scheme in rows:
                for token, token_scheme in tokens:
                    once = read.seconds(row_scheme, token_scheme, self.profile) if row_scheme or token_scheme else None
                    pair = tuple(member for member in (row, token) if member is not None)
                    if once is not None:
                        found.append((pair, sum(self._read_seconds(self._at(member)) for member in pair) - once))
        return tuple(found)

    def _readers(self, item: int | None, kind: type) -> list[tuple[Member | None, Any]]:
        """The alternatives of one side that a single read could serve: in groups, or exact, which needs no form."""
        if item is None:
            return [(None, None)]
        found: list[tuple[Member | None, Any]] = []
        for number, alternative in enumerate(self.products[item].choices):
            scheme = alternative.scheme
            if isinstance(scheme, Exact):
                found.append(((item, number), None))
            elif isinstance(scheme, kind) and getattr(scheme, "group", None):
                found.append(((item, number), scheme))
        return found
