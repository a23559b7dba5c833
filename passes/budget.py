"""A memory budget: the cheapest choice under which the forward keeps at most so large a share of what exact keeps.

What a graph keeps is decided by its partition, which may rebuild a tensor instead of keeping it; the bytes of single
products do not tell all of it. So the knapsack proposes, with a capacity, and the bytes are counted on a partition of
the graph that the proposal would make. Where they exceed the budget the capacity is lowered by the difference.

Schemes make the operands of products smaller, and nothing else. Where that is not enough, the partition rebuilds
activations in the backward (torch's ``activation_memory_budget``), as few as are needed. Prices know nothing of the
time that this takes: it is the last resort.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from hadamard_fx.cost_model.knapsack import Choice, solve
from hadamard_fx.errors import BudgetError
from hadamard_fx.plan import Decision
from hadamard_fx.policy import Policy

from .shared_work import Objective, SharedWork

__all__ = ["Chosen", "KeptBytes", "within_budget"]


class KeptBytes(Protocol):
    """Counts the bytes that the forward of the whole graph keeps."""

    def __call__(self, decisions: tuple[Decision, ...], activation_budget: float = 1.0) -> int:
        """Under these decisions, where the partition keeps so large a share of the activations."""


@dataclass(frozen=True)
class Chosen:
    """The decisions of a graph, and the share of its activations that the partition is to keep."""

    decisions: tuple[Decision, ...]
    activation_budget: float = 1.0


PROPOSALS = 4
"""How often a proposal is lowered before the lightest choice of all is taken."""

STEPS = 10
"""Shares of the activations that are considered, from the largest: multiples of a tenth."""


def within_budget(
    policy: Policy,
    shared: SharedWork,
    objective: Objective,
    best: Choice,
    decide: Callable[[Sequence[int]], tuple[Decision, ...]],
    kept: KeptBytes,
) -> Chosen:
    """The best choice that is counted to keep the budget.

    Where the lightest schemes keep too much, the partition is asked to rebuild activations.

    Args:
        policy: whose ``memory_budget`` holds.
        shared, objective: the problem.
        best: its solution without a budget.
        decide: turns a choice into decisions.
        kept: counts.

    Raises:
        BudgetError: the lightest choice keeps more; names the nearest feasible budget.
    """
    exact = kept(())
    allowed = policy.memory_budget * exact
    choice: Choice | None = best
    for _ in range(PROPOSALS):
        assert choice is not None
        decisions = decide(choice.options)
        counted = kept(decisions)
        if counted <= allowed:
            return Chosen(decisions)
        choice = solve(shared.items(objective), shared.ties(objective), choice.weight - (counted - allowed))
        if choice is None:
            break
    light = Objective(objective.seconds * 1e-6, objective.bytes or 1 / max(exact, 1))
    lightest = solve(shared.items(light), shared.ties(light))
    assert lightest is not None
    decisions = decide(lightest.options)
    counted = kept(decisions)
    if counted <= allowed:
        return Chosen(decisions)
    least: float = counted
    for step in range(STEPS - 1, -1, -1):
        rebuilt = _kept_rebuilding(kept, decisions, step / STEPS)
        least = min(least, rebuilt)
        if rebuilt <= allowed:
            return Chosen(decisions, step / STEPS)
    raise BudgetError(policy.memory_budget, least / exact, _binding(shared))


def _kept_rebuilding(kept: KeptBytes, decisions: tuple[Decision, ...], share: float) -> float:
    """Infinite where torch cannot partition the graph so: on some it fails an assertion when little is to be kept."""
    try:
        return kept(decisions, share)
    except AssertionError:
        return float("inf")


def _binding(shared: SharedWork) -> str:
    """What leaves products no other choice."""
    asked = dict.fromkeys(product.origin for product in shared.products if not product.priced)
    return " and ".join(asked)
