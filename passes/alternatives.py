"""What each product may become: the schemes that the policy allows, refined, judged and priced, before one is chosen.

A scheme that is refused is listed with its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from hadamard_fx.cost_model.calibration import Calibration
from hadamard_fx.cost_model.device_profile import DeviceProfile
from hadamard_fx.cost_model.error import has_error_model, relative_error
from hadamard_fx.cost_model.work import Work, sizes_of
from hadamard_fx.plan import Candidate, Cost, Gemm, Role
from hadamard_fx.policy import Policy
from hadamard_fx.scheme import Exact, Scheme

from .lqs import LARGEST_ERROR, refined
from .rule import QUANTISABLE, rule_of
from .unfolding import note_on, price_of, works_of

__all__ = ["Alternative", "Alternatives", "alternatives"]

GAIN = 0.95
"""A scheme must be predicted to take less than this share of the exact product's time: prices are no better."""

NOISE = 0.01
"""Of two schemes that are not exact, the more exact one is taken where it costs at most this much more."""

_FORWARD = "the forward stays in full precision (HOT, section 3)"
_ALWAYS_EXACT = {
    Role.ACTIVATION: "no product of activations with an nn.Parameter",
    Role.PARAMETERS: "a product of parameters and buffers only, whose contracted axis holds no tokens",
}


@dataclass(frozen=True)
class Alternative:
    """One way to compute a product.

    Attributes:
        scheme: ready to run.
        cost: with an even share of what it has in common with others.
        works: the launches behind it; empty where only ``cost`` is known.
        margin: what its seconds are multiplied with, so that a choice within the noise is the more exact one.
        note: what a calibration made of it.
    """

    scheme: Scheme
    cost: Cost
    works: tuple[Work, ...]
    margin: float = 1.0
    note: str = ""


@dataclass(frozen=True)
class Alternatives:
    """Of one product.

    Attributes:
        gemm: the product.
        exact: leaving it alone.
        choices: among which the choice is made; exact is the first of them unless a scheme is asked for.
        priced: exact is among them because prices decide.
        refused: schemes that may not compute it.
        origin: of the rule that allowed them, ``"profile 'hot'"``.
        reason: why nothing is chosen; ``""`` where something is.
    """

    gemm: Gemm
    exact: Alternative
    choices: tuple[Alternative, ...]
    priced: bool = True
    refused: tuple[Candidate, ...] = ()
    origin: str = ""
    reason: str = ""


def alternatives(
    gemms: tuple[Gemm, ...], policy: Policy, profile: DeviceProfile, calibration: Calibration | None
) -> tuple[Alternatives, ...]:
    """Of every product, in order."""
    sharing = Counter(gemm.saved for gemm in gemms if gemm.role is Role.GRAD_WEIGHT)
    return tuple(_Finder(policy, profile, calibration, gemm, max(sharing[gemm.saved], 1)).find() for gemm in gemms)


@dataclass(frozen=True)
class _Finder:
    policy: Policy
    profile: DeviceProfile
    calibration: Calibration | None
    gemm: Gemm
    sharing: int

    def find(self) -> Alternatives:
        gemm, exact = self.gemm, self._priced(Exact())
        if gemm.dtype not in QUANTISABLE:
            return Alternatives(gemm, exact, (exact,), reason=f"{gemm.dtype} products are left exact")
        if gemm.layer_role in _ALWAYS_EXACT:
            return Alternatives(gemm, exact, (exact,), reason=_ALWAYS_EXACT[gemm.layer_role])
        bound = self.policy.max_error
        choice = self.policy.choice(gemm.layer, gemm.layer_role)
        choice = refined(choice, gemm, self.calibration, self.profile, LARGEST_ERROR if bound is None else bound)
        if gemm.layer_role is Role.FORWARD and all(isinstance(scheme, Exact) for scheme in choice.schemes):
            return Alternatives(gemm, exact, (exact,), reason=_FORWARD)
        refused = [Candidate(scheme, why) for scheme, why in choice.refused]
        found: list[list[Alternative]] = []
        for asked in choice.schemes:
            if not isinstance(asked, Exact):
                legal, others = self._variants(asked, choice.note(asked))
                refused += others
                found += [legal] if legal else []
        if not choice.priced and found:
            # What the device is left to decide is decided by price; the schemes after the first are not.
            passed_over = [Candidate(a.scheme, f"{choice.origin} asks for {found[0][0].scheme}", a.cost)
                           for others in found[1:] for a in others]  # fmt: skip
            choices = tuple(_with_margins(found[0], 1.0))
            return Alternatives(gemm, exact, choices, False, (*refused, *passed_over), choice.origin)
        flat = _with_margins([alternative for variants in found for alternative in variants], 1 / GAIN)
        return Alternatives(gemm, exact, (exact, *flat), True, tuple(refused), choice.origin)

    def _variants(self, asked: Scheme, note: str) -> tuple[list[Alternative], list[Candidate]]:
        """The legal variants of a scheme, and the others."""
        rule = rule_of(asked)
        legal: list[Alternative] = []
        refused: list[Candidate] = []
        for scheme in rule.variants(asked, self.gemm, self.profile):
            reason = rule.illegal(scheme, self.gemm) or self._too_wrong(scheme)
            if reason:
                refused.append(Candidate(scheme, reason))
            else:
                legal.append(self._priced(scheme, note))
        return legal, refused

    def _too_wrong(self, scheme: Scheme) -> str:
        bound = self.policy.max_error
        if bound is None:
            return ""
        error = self._error(scheme)
        if error is None:
            return "max_error is set, and nothing predicts its error"
        if error <= bound:
            return ""
        shown = f"{error:.2g}" if f"{error:.2g}" != f"{bound:.2g}" else f"{error:.6g}"
        return f"its error, {shown}, would exceed max_error = {bound:g}"

    def _error(self, scheme: Scheme) -> float | None:
        """Measured where a calibration did, else predicted; None where nothing predicts it."""
        measured = self.calibration.measured_error(scheme, self.gemm) if self.calibration else None
        return self._predicted_error(scheme) if measured is None else measured

    def _predicted_error(self, scheme: Scheme) -> float | None:
        if not has_error_model(scheme):
            return None
        return relative_error(scheme, self.gemm, self.calibration.statistics(self.gemm) if self.calibration else None)

    def _priced(self, scheme: Scheme, note: str = "") -> Alternative:
        cost = price_of(scheme, self.gemm, self.profile, self.sharing)
        if cost.error is None:
            cost = replace(cost, error=self._predicted_error(scheme))
        note = "; ".join(filter(None, (note, note_on(scheme, self.gemm))))
        return Alternative(scheme, cost, works_of(scheme, self.gemm, sizes_of(self.gemm)), note=note)


def _with_margins(found: list[Alternative], first: float) -> Iterator[Alternative]:
    """In the order given; the less exact an alternative is, the more it must save."""
    by_error = sorted(found, key=lambda a: float("inf") if a.cost.error is None else a.cost.error)
    place = {id(alternative): number for number, alternative in enumerate(by_error)}
    for alternative in found:
        margin = first * (1 + NOISE) ** place[id(alternative)]
        yield replace(alternative, margin=margin)
