"""Choose a scheme for every product: what the policy allows, what is legal, what the price says.

All products of a graph are chosen together, since some of their work is shared: an exact solution of the knapsack over
all of them. A product that is left alone is a decision with a reason, never a silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from hadamard_fx.cost_model.calibration import Calibration
from hadamard_fx.cost_model.device_profile import DeviceProfile
from hadamard_fx.cost_model.knapsack import solve
from hadamard_fx.errors import BudgetError
from hadamard_fx.plan import Candidate, Cost, Decision, Gemm
from hadamard_fx.policy import Policy
from hadamard_fx.scheme import Exact

from .alternatives import Alternative, Alternatives, alternatives
from .budget import Chosen, KeptBytes, within_budget
from .expected_error import with_errors
from .one_read import OneRead
from .rule import QUANTISABLE, rule_of
from .shared_work import Objective, SharedWork

__all__ = ["ChooseSchemes"]


@dataclass(frozen=True)
class ChooseSchemes:
    """Products ⇒ decisions.

    Attributes:
        policy: what the user asked for.
        profile: the device whose prices count.
        calibration: what was measured of the model, if anything.
    """

    name: ClassVar[str] = "choose-schemes"
    policy: Policy
    profile: DeviceProfile
    calibration: Calibration | None = None

    def decide(self, gemms: tuple[Gemm, ...]) -> tuple[Decision, ...]:
        """One decision per product, in order, by what is known of the products alone."""
        return self.choose(gemms).decisions

    def choose(self, gemms: tuple[Gemm, ...], reads: Sequence[OneRead] = (), kept: KeptBytes | None = None) -> Chosen:
        """One decision per product, in order.

        Args:
            gemms: the products.
            reads: what one read of each incoming gradient would cost.
            kept: counts what the forward keeps under some decisions, for a memory budget; without it there is none.

        Raises:
            CalibrationError: the calibration is of another model.
            BudgetError: no choice keeps as little as the memory budget asks for.
        """
        if self.calibration is not None:
            self.calibration.check(gemm for gemm in gemms if gemm.dtype in QUANTISABLE)
        products = alternatives(gemms, self.policy, self.profile, self.calibration)
        shared = SharedWork(products, reads, self.profile)
        objective = self._objective(products)
        best = solve(shared.items(objective), shared.ties(objective))
        assert best is not None  # without a capacity there always is one
        decisions = self._decisions(shared, best.options)
        if kept is None or self.policy.memory_budget == 1:
            return Chosen(decisions)

        def decide(chosen: Sequence[int]) -> tuple[Decision, ...]:
            return self._decisions(shared, chosen)

        try:
            return within_budget(self.policy, shared, objective, best, decide, kept)
        except BudgetError as error:
            self._blame_max_error(error, gemms, reads, kept)
            raise

    def _blame_max_error(
        self, error: BudgetError, gemms: tuple[Gemm, ...], reads: Sequence[OneRead], kept: KeptBytes
    ) -> None:
        """Raise an error that names ``max_error`` where the memory budget could be kept without it."""
        if self.policy.max_error is None:
            return
        try:
            replace(self, policy=replace(self.policy, max_error=None)).choose(gemms, reads, kept)
        except BudgetError:
            return
        binding = f"max_error = {self.policy.max_error:g}"
        raise BudgetError(error.asked, error.least, binding) from None

    def _objective(self, products: Sequence[Alternatives]) -> Objective:
        """Time and memory, each as a share of what exact takes, weighed as the user asked."""
        memory = self.policy.objective
        seconds = sum(product.exact.cost.seconds for product in products) or 1.0
        kept = sum(product.exact.cost.saved_bytes for product in products) or 1
        # Of two ways that keep as little, the faster one: time never counts for nothing.
        return Objective(max(1 - memory, 1e-6) / seconds, memory / kept)

    def _decisions(self, shared: SharedWork, chosen: Sequence[int]) -> tuple[Decision, ...]:
        costs, once = shared.costs(chosen), shared.read_once(chosen)
        found = []
        for item, (product, number) in enumerate(zip(shared.products, chosen, strict=True)):
            decision = _decision(product, number, costs[item])
            notes = [decision.reason, product.choices[number].note]
            if item in once:
                notes.append(f"one read of the gradient, {1e6 * once[item]:.0f} µs less than separate ones")
            decision = replace(decision, reason="; ".join(filter(None, notes)))
            found.append(with_errors(decision, self.calibration))
        return tuple(found)


def _decision(product: Alternatives, number: int, cost: Cost) -> Decision:
    gemm, chosen, exact = product.gemm, product.choices[number], product.exact.cost
    if product.reason:
        return Decision(gemm, chosen.scheme, exact, exact, product.reason)
    others = [other for place, other in enumerate(product.choices) if place != number]
    if not product.priced:
        return _forced(product, chosen, others, cost)
    if isinstance(chosen.scheme, Exact):
        rejected = [*product.refused, *(Candidate(o.scheme, _no_gain(o.cost, exact), o.cost) for o in others)]
        reasons = dict.fromkeys(candidate.reason for candidate in rejected)
        reason = "; ".join(reasons) if rejected else f"{product.origin} asks for it"
        return Decision(gemm, chosen.scheme, cost, exact, reason, tuple(rejected))
    faster = exact.seconds / cost.seconds
    gain = f"predicted {faster:.2f}× faster than exact"
    slower = gain.replace("faster than exact", "slower than the choice")
    if faster < 1:
        gain = slower = "it keeps less for the backward"
    rejected = [*product.refused]
    for other in others:
        why = slower if isinstance(other.scheme, Exact) else "predicted slower than the choice"
        rejected.append(Candidate(other.scheme, why, other.cost))
    rejected.sort(key=lambda candidate: isinstance(candidate.scheme, Exact))
    return Decision(gemm, chosen.scheme, cost, exact, gain, tuple(rejected))


def _forced(product: Alternatives, chosen: Alternative, others: list[Alternative], cost: Cost) -> Decision:
    asked = f"{product.origin} asks for {chosen.scheme}"
    variants = [Candidate(other.scheme, "predicted slower than the choice", other.cost) for other in others]
    exact = Candidate(Exact(), asked, product.exact.cost)
    note = rule_of(chosen.scheme).note(chosen.scheme, product.gemm)
    reason = "; ".join(filter(None, (f"{product.origin} asks for it", note)))
    rejected = (*product.refused, *variants, exact)
    return Decision(product.gemm, chosen.scheme, cost, product.exact.cost, reason, rejected)


def _no_gain(cost: Cost, exact_cost: Cost) -> str:
    return f"no gain predicted: {exact_cost.seconds / cost.seconds:.2f}× of exact's speed"
