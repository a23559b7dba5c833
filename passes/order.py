"""The order of passes: a graph of constraints, sorted; a cycle is named with who asked for what."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import networkx as nx

from hadamard_fx.errors import PassOrderError
from hadamard_fx.profiles import did_you_mean

from .base import STAGES, Effect, Pass

__all__ = ["Placed", "in_order", "unknown_neighbours"]

_WINDOW = {
    Effect.DECIDES: ("choose", "rewrite", "it decides, which nobody hears after 'rewrite'"),
    Effect.REWRITES: ("rewrite", "partition", "it edits the joint graph, which 'partition' splits"),
    Effect.OBSERVES: ("choose", "", "it observes a plan, which 'choose' makes"),
}
"""Between which stages a pass of each effect must run."""


@dataclass(frozen=True)
class Placed:
    """A pass with all that is asked of its place: by its class, and by whoever registered it."""

    run: Pass
    requires: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    before: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.run.name


def in_order(placed: Sequence[Placed], known: Iterable[str] = ()) -> tuple[str, ...]:
    """The names of all stages and passes in the order in which they run.

    Among those that no constraint tells apart, passes run as early as they may, in the order of registration.

    Args:
        known: names of passes that exist but are switched off, for the message.

    Raises:
        PassOrderError: the constraints form a cycle, or a required pass is not active.
    """
    graph = nx.DiGraph()
    graph.add_nodes_from([*STAGES, *(entry.name for entry in placed)])
    for left, right, why in _constraints(placed, set(known)):
        if left in graph and right in graph and not graph.has_edge(left, right):
            graph.add_edge(left, right, why=why)
    rank = {name: number for number, name in enumerate([*(entry.name for entry in placed), *STAGES])}
    try:
        return tuple(nx.lexicographical_topological_sort(graph, key=rank.__getitem__))
    except nx.NetworkXUnfeasible:
        raise _cycle(graph) from None


def _constraints(placed: Sequence[Placed], known: set[str]) -> Iterator[tuple[str, str, str]]:
    """(runs first, runs later, why)."""
    active = {*STAGES, *(entry.name for entry in placed)}
    for first, second in itertools.pairwise(STAGES):
        yield first, second, "the stages have their order"
    for entry in placed:
        for name in entry.requires:
            if name not in active:
                off = "which is switched off" if name in known else f"which nobody registered;{_near(name, active)}"
                raise PassOrderError(f"pass {entry.name!r} requires {name!r}, {off}")
            yield name, entry.name, f"{entry.name!r} requires {name!r}"
        for name in entry.after:
            yield name, entry.name, f"{entry.name!r} is to run after {name!r}"
        for name in entry.before:
            yield entry.name, name, f"{entry.name!r} is to run before {name!r}"
        opens, closes, why = _WINDOW[entry.run.effect()]
        yield opens, entry.name, f"{entry.name!r} runs after {opens!r}: {why}"
        if closes:
            yield entry.name, closes, f"{entry.name!r} runs before {closes!r}: {why}"


def _near(name: str, active: Iterable[str]) -> str:
    return did_you_mean(name, active)


def _cycle(graph: nx.DiGraph) -> PassOrderError:
    edges = nx.find_cycle(graph)
    names = " → ".join([*(left for left, _ in edges), edges[0][0]])
    reasons = "\n".join(f"  {left} → {right}: {graph.edges[left, right]['why']}" for left, right in edges)
    return PassOrderError(f"the passes cannot be ordered: {names}\n{reasons}\n  Take one of these constraints away.")


def unknown_neighbours(placed: Sequence[Placed], known: Iterable[str]) -> Iterator[str]:
    """A sentence for each ``after`` or ``before`` that names nothing at all: most likely a slip of the pen.

    No error, because a pass may be placed relative to one that is not always installed.
    """
    names = {*STAGES, *known, *(entry.name for entry in placed)}
    for entry in placed:
        for word, others in (("after", entry.after), ("before", entry.before)):
            for other in others:
                if other not in names:
                    yield (
                        f"pass {entry.name!r} is to run {word} {other!r}, which is no stage and no registered pass;"
                        f"{_near(other, names)}"
                    )
