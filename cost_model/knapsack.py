"""Multiple-choice knapsack: one option for each item, at least price, within a capacity.

What several options share is counted once, and what they save together is counted where all of them are chosen. Without
a capacity the items fall apart into groups that share nothing; small groups are enumerated, all others are solved by
HiGHS (``scipy.optimize.milp``) as an integer program. Both are exact, and deterministic.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Choice", "Option", "Tie", "solve"]

ENUMERATED = 2000
"""Combinations of a group that are tried one after the other: a solver takes longer to start."""

GAP = 1e-4
"""Relative distance from the optimum at which the solver may stop: far below what prices are known to."""


@dataclass(frozen=True)
class Option:
    """One way to do one item.

    Attributes:
        price: what is minimised.
        weight: what the capacity bounds.
    """

    price: float
    weight: float = 0.0


@dataclass(frozen=True)
class Tie:
    """What options of several items have in common.

    Attributes:
        members: (item, option) of each.
        price, weight: counted once where the tie holds; a negative price is a saving.
        every: it holds where all members are chosen, otherwise where one is.
    """

    members: tuple[tuple[int, int], ...]
    price: float
    weight: float = 0.0
    every: bool = False


@dataclass(frozen=True)
class Choice:
    """The chosen option of each item, and the totals, ties included."""

    options: tuple[int, ...]
    price: float
    weight: float


def solve(items: Sequence[Sequence[Option]], ties: Sequence[Tie] = (), capacity: float = math.inf) -> Choice | None:
    """The cheapest choice; None where every choice is too heavy.

    Args:
        items: the options of each, one at least.
        ties: between them.
        capacity: of the sum of all weights.
    """
    ties = _merged(ties)
    chosen = [0] * len(items)
    if capacity < math.inf:
        found = _program(items, ties, capacity)
        if found is None:
            return None
        chosen = found
    else:
        known: dict[Any, list[int]] = {}
        for members, inside in _groups(items, ties):
            alone = _renumbered(members, items, inside)
            if alone not in known:
                known[alone] = _best(*alone)
            for item, option in zip(members, known[alone], strict=True):
                chosen[item] = option
    return _totals(items, ties, chosen)


def _merged(ties: Iterable[Tie]) -> list[Tie]:
    """Ties of the same members as one: they hold together."""
    found: dict[Any, Tie] = {}
    for tie in ties:
        key = tie.members, tie.every
        known = found.get(key, Tie(tie.members, 0.0, 0.0, tie.every))
        found[key] = Tie(tie.members, known.price + tie.price, known.weight + tie.weight, tie.every)
    return list(found.values())


def _totals(items: Sequence[Sequence[Option]], ties: Sequence[Tie], chosen: Sequence[int]) -> Choice:
    taken: list[Option | Tie] = [options[number] for options, number in zip(items, chosen, strict=True)]
    taken += [tie for tie in ties if _holds(tie, chosen)]
    return Choice(tuple(chosen), sum(entry.price for entry in taken), sum(entry.weight for entry in taken))


def _holds(tie: Tie, chosen: Sequence[int] | Mapping[int, int]) -> bool:
    test = all if tie.every else any
    return test(chosen[item] == option for item, option in tie.members)


def _groups(items: Sequence[Sequence[Option]], ties: Sequence[Tie]) -> Iterable[tuple[tuple[int, ...], list[Tie]]]:
    """Items that ties connect, in order, with their ties."""
    import networkx

    graph = networkx.Graph()
    graph.add_nodes_from(range(len(items)))
    for tie in ties:
        first = tie.members[0][0]
        graph.add_edges_from((first, item) for item, _ in tie.members[1:])
    number: dict[int, int] = {}
    groups: list[tuple[tuple[int, ...], list[Tie]]] = []
    for members in networkx.connected_components(graph):
        for item in members:
            number[item] = len(groups)
        groups.append((tuple(sorted(members)), []))
    for tie in ties:
        groups[number[tie.members[0][0]]][1].append(tie)
    return groups


def _renumbered(
    members: tuple[int, ...], items: Sequence[Sequence[Option]], ties: Iterable[Tie]
) -> tuple[tuple[tuple[Option, ...], ...], tuple[Tie, ...]]:
    """A group by itself: equal groups, those of equal layers, are solved once."""
    number = {item: position for position, item in enumerate(members)}
    moved = (
        Tie(tuple((number[item], option) for item, option in tie.members), tie.price, tie.weight, tie.every)
        for tie in ties
    )
    return tuple(tuple(items[item]) for item in members), tuple(moved)


def _best(items: tuple[tuple[Option, ...], ...], ties: tuple[Tie, ...]) -> list[int]:
    """Items that have ties to one other item only are folded into its options, one after the other."""
    options = list(items)
    around: dict[int, list[Tie]] = defaultdict(list)
    for tie in ties:
        for item in dict.fromkeys(item for item, _ in tie.members):
            around[item].append(tie)
    folded: list[tuple[int, int, list[int]]] = []
    gone: set[Tie] = set()
    waiting = list(range(len(items)))
    while waiting:
        leaf = waiting.pop()
        others = {item for tie in around[leaf] for item, _ in tie.members} - {leaf}
        if len(others) == 1:
            (partner,) = others
            answers, options[partner] = _fold(options, around[leaf], leaf, partner)
            folded.append((leaf, partner, answers))
            gone.update(around[leaf])
            around[partner] = [tie for tie in around[partner] if tie not in gone]
            around[leaf], options[leaf] = [], (Option(0.0),)  # it has nothing left to decide
            waiting.append(partner)
    chosen = _best_of_all(tuple(options), tuple(tie for tie in ties if tie not in gone))
    for leaf, partner, answers in reversed(folded):
        chosen[leaf] = answers[chosen[partner]]
    return chosen


def _fold(
    options: Sequence[tuple[Option, ...]], ties: list[Tie], leaf: int, partner: int
) -> tuple[list[int], tuple[Option, ...]]:
    """The leaf's best option beside each option of its partner, and the partner's options at the price of both."""
    answers: list[int] = []
    joint: list[Option] = []
    for place, option in enumerate(options[partner]):
        prices = []
        for number, own in enumerate(options[leaf]):
            chosen = {leaf: number, partner: place}
            prices.append(own.price + sum(tie.price for tie in ties if _holds(tie, chosen)))
        answers.append(prices.index(min(prices)))
        joint.append(Option(option.price + min(prices)))
    return answers, tuple(joint)


def _best_of_all(items: tuple[tuple[Option, ...], ...], ties: tuple[Tie, ...]) -> list[int]:
    if math.prod(len(options) for options in items) > ENUMERATED:
        found = _program(items, ties, math.inf)
        assert found is not None
        return found
    combinations = itertools.product(*(range(len(options)) for options in items))
    choices = (_totals(items, ties, chosen) for chosen in combinations)
    return list(min(choices, key=lambda choice: choice.price).options)


def _program(items: Sequence[Sequence[Option]], ties: Sequence[Tie], capacity: float) -> list[int] | None:
    """The same as an integer program: a 0-1 variable for each option and for each tie."""
    import numpy
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    first = list(itertools.accumulate((len(options) for options in items), initial=0))
    variables: list[Option | Tie] = [option for options in items for option in options]
    variables += ties
    rows = _Rows()
    for item, options in enumerate(items):
        rows.add({first[item] + number: 1.0 for number in range(len(options))}, 1.0, 1.0)
    held_by: dict[Any, list[int]] = defaultdict(list)
    alike: Counter[Any] = Counter()
    for number, tie in enumerate(ties, first[-1]):
        members = [first[item] + option for item, option in tie.members]
        if tie.every:
            for member, (item, _) in zip(members, tie.members, strict=True):
                others = tuple(other for other, _ in tie.members if other != item)
                held_by[member, others, alike[frozenset(members)]].append(number)
            alike[frozenset(members)] += 1
            if tie.price > 0 or tie.weight > 0:
                rows.add({number: -1.0, **dict.fromkeys(members, 1.0)}, -math.inf, len(members) - 1.0)
            continue
        for member in members:
            rows.add({number: 1.0, member: -1.0}, 0.0, math.inf)
        if tie.price < 0 or tie.weight < 0:
            rows.add({number: 1.0, **dict.fromkeys(members, -1.0)}, -math.inf, 0.0)
    # Ties of one option with several options of the same other items: at most one of them holds.
    for (member, *_), numbers in held_by.items():
        rows.add({member: -1.0, **dict.fromkeys(numbers, 1.0)}, -math.inf, 0.0)
    largest = max([abs(v.weight) for v in variables] + [1.0])  # the solver's tolerances are absolute
    if capacity < math.inf:
        rows.add({n: v.weight / largest for n, v in enumerate(variables) if v.weight}, -math.inf, capacity / largest)
    prices = numpy.array([v.price for v in variables])
    prices = prices / (numpy.abs(prices).max() or 1.0)
    matrix = coo_array((rows.values, (rows.row, rows.column)), shape=(len(rows.lower), len(variables)))
    result = milp(
        prices,
        integrality=[number < first[-1] for number in range(len(variables))],  # options decide on their ties
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(matrix.tocsr(), rows.lower, rows.upper),
        options={"mip_rel_gap": GAP},
    )
    if result.x is None:
        return None
    chosen = []
    for options, at in zip(items, first, strict=False):
        values = list(result.x[at : at + len(options)])
        chosen.append(values.index(max(values)))
    return chosen


class _Rows:
    """Linear constraints, row by row."""

    def __init__(self) -> None:
        self.row: list[int] = []
        self.column: list[int] = []
        self.values: list[float] = []
        self.lower: list[float] = []
        self.upper: list[float] = []

    def add(self, coefficients: dict[int, float], lower: float, upper: float) -> None:
        self.row += [len(self.lower)] * len(coefficients)
        self.column += coefficients
        self.values += coefficients.values()
        self.lower.append(lower)
        self.upper.append(upper)
