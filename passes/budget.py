"""A memory budget: the cheapest choice under which the forward keeps at most so large a share of what exact keeps.

What a graph keeps is decided by its partition, which may rebuild a tensor instead of keeping it; the bytes of single
products do not tell all of it. So the knapsack proposes, with a capacity, and the bytes are counted on a partition of
the graph that the proposal would make. Where they exceed the budget the capacity is lowered by the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hadamard_fx.cost_model.knapsack import Choice, solve
from hadamard_fx.errors import BudgetError
from hadamard_fx.plan import Decision
from hadamard_fx.policy import Policy

from .shared_work import Objective, SharedWork

__all__ = ["KeptBytes", "within_budget"]

KeptBytes = Callable[[tuple[Decision, ...]], int]
"""Decisions ⇒ bytes that the forward of the whole graph keeps under them."""

PROPOSALS = 4
"""How often a proposal is lowered before the lightest choice of all is taken."""


def within_budget(
    policy: Policy,
    shared: SharedWork,
    objective: Objective,
    best: Choice,
    decide: Callable[[Sequence[int]], tuple[Decision, ...]],
    kept: KeptBytes,
) -> tuple[Decision, ...]:
    """The decisions of the best choice that is counted to keep the budget.

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
            return decisions
        choice = solve(shared.items(objective), shared.ties(objective), choice.weight - (counted - allowed))
        if choice is None:
            break
    light = Objective(objective.seconds * 1e-6, objective.bytes or 1 / max(exact, 1))
    lightest = solve(shared.items(light), shared.ties(light))
    assert lightest is not None
    decisions = decide(lightest.options)
    counted = kept(decisions)
    if counted > allowed:
        raise BudgetError(policy.memory_budget, counted / exact, _binding(shared))
    return decisions


def _binding(shared: SharedWork) -> str:
    """What leaves products no other choice."""
    asked = dict.fromkeys(product.origin for product in shared.products if not product.priced)
    return " and ".join(asked)
