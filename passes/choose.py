"""Choose a scheme for every product: what the policy allows, what is legal, what the price says.

A product that is left alone is a decision with a reason, never a silence.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar

from hadamard_fx.cost_model.calibration import Calibration
from hadamard_fx.cost_model.device_profile import DeviceProfile
from hadamard_fx.plan import Candidate, Cost, Decision, Gemm, Role
from hadamard_fx.policy import Policy
from hadamard_fx.scheme import Exact, Scheme

from .expected_error import with_errors
from .lqs import refined
from .rule import QUANTISABLE, rule_of

GAIN = 0.95
"""A scheme must be predicted to take less than this share of the exact product's time: the first price is no better."""

_FORWARD = "the forward stays in full precision (HOT, section 3)"
_ALWAYS_EXACT = {
    Role.ACTIVATION: "no product of activations with an nn.Parameter",
    Role.PARAMETERS: "a product of parameters only, whose contracted axis holds no tokens",
}


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
        """One decision per product, in order.

        Raises:
            CalibrationError: the calibration is of another model.
        """
        if self.calibration is not None:
            self.calibration.check(gemm for gemm in gemms if gemm.dtype in QUANTISABLE)
        sharing = Counter(gemm.saved for gemm in gemms if gemm.role is Role.GRAD_WEIGHT)
        decisions = (self._decide(gemm, max(sharing[gemm.saved], 1)) for gemm in gemms)
        return tuple(with_errors(decision, self.calibration) for decision in decisions)

    def _decide(self, gemm: Gemm, sharing: int) -> Decision:
        exact = Exact()
        exact_cost = rule_of(exact).price(exact, gemm, self.profile, sharing)
        if gemm.dtype not in QUANTISABLE:
            return Decision(gemm, exact, exact_cost, exact_cost, f"{gemm.dtype} products are left exact")
        if gemm.role in _ALWAYS_EXACT:
            return Decision(gemm, exact, exact_cost, exact_cost, _ALWAYS_EXACT[gemm.role])
        choice = refined(self.policy.choice(gemm.layer, gemm.role), gemm, self.calibration, self.profile)
        if gemm.role is Role.FORWARD and all(isinstance(scheme, Exact) for scheme in choice.schemes):
            return Decision(gemm, exact, exact_cost, exact_cost, _FORWARD)
        priced: list[tuple[Scheme, Cost]] = []
        rejected = [Candidate(scheme, why) for scheme, why in choice.refused]
        notes: dict[Scheme, str] = {}
        for asked in choice.schemes:
            if isinstance(asked, Exact):
                continue
            rule = rule_of(asked)
            scheme = rule.refine(asked, gemm, self.profile)
            notes[scheme] = choice.note(asked)
            if reason := rule.illegal(scheme, gemm):
                rejected.append(Candidate(scheme, reason))
            else:
                priced.append((scheme, rule.price(scheme, gemm, self.profile, sharing)))
        if not choice.priced and priced:
            decision = self._forced(gemm, priced, rejected, exact_cost, choice.origin)
        else:
            decision = self._cheapest(gemm, priced, rejected, exact_cost, choice.origin)
        return replace(decision, reason="; ".join(filter(None, (decision.reason, notes.get(decision.scheme)))))

    def _forced(
        self, gemm: Gemm, priced: list[tuple[Scheme, Cost]], rejected: list[Candidate], exact_cost: Cost, origin: str
    ) -> Decision:
        (scheme, cost), *others = priced
        passed_over = [Candidate(other, f"{origin} asks for {scheme}", price) for other, price in others]
        passed_over.append(Candidate(Exact(), f"{origin} asks for {scheme}", exact_cost))
        reason = "; ".join(filter(None, (f"{origin} asks for it", rule_of(scheme).note(scheme, gemm))))
        return Decision(gemm, scheme, cost, exact_cost, reason, (*rejected, *passed_over))

    def _cheapest(
        self, gemm: Gemm, priced: list[tuple[Scheme, Cost]], rejected: list[Candidate], exact_cost: Cost, origin: str
    ) -> Decision:
        best = min(priced, key=lambda entry: entry[1].seconds, default=None)
        if best is None or best[1].seconds >= GAIN * exact_cost.seconds:
            rejected += [Candidate(s, _no_gain(c, exact_cost), c) for s, c in priced]
            reason = f"{origin} asks for it" if not rejected else "; ".join(dict.fromkeys(c.reason for c in rejected))
            return Decision(gemm, Exact(), exact_cost, exact_cost, reason, tuple(rejected))
        gain = f"predicted {exact_cost.seconds / best[1].seconds:.2f}× faster than exact"
        rejected += [Candidate(s, "predicted slower than the choice", c) for s, c in priced if s != best[0]]
        rejected.append(Candidate(Exact(), gain.replace("faster than exact", "slower than the choice"), exact_cost))
        return Decision(gemm, best[0], best[1], exact_cost, gain, tuple(rejected))


def _no_gain(cost: Cost, exact_cost: Cost) -> str:
    return f"no gain predicted: {exact_cost.seconds / cost.seconds:.2f}× of exact's speed"
