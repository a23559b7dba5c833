"""Layer-wise selection: what a calibration makes of the schemes that a profile asks for.

HOT's LQS (arXiv 2503.21261) takes one scale per token only where that at least halves the error of one per tensor. The
published figure shows the choice for g_w, the published code makes it for g_x; here both products choose, each by its
own error. Three more questions are answered the same way: tokens that are alike need no random signs, a rank cut that
loses nothing is made deeper, and a scheme whose error is beyond ``LARGEST_ERROR`` is made more exact, one setting after
the other.

Errors are measured ones where the calibration ran exactly this scheme, else predicted from its statistics. A scheme
that the user wrote out, in an option or an override, is taken as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from hadamard_fx.cost_model.calibration import Calibration
from hadamard_fx.cost_model.device_profile import DeviceProfile
from hadamard_fx.cost_model.error import cut_energy
from hadamard_fx.options import Choice
from hadamard_fx.plan import Gemm, Role
from hadamard_fx.profiles import PROFILES
from hadamard_fx.scheme import Exact, Hadamard, LowRank, Scheme

from .rule import rule_of

__all__ = ["ALIKE", "LARGEST_ERROR", "ORDERS", "measured_schemes", "refined"]

LARGEST_ERROR = 0.5
"""Relative error of a product beyond which a scheme is made more exact: half of the result would be noise."""

ALIKE = 0.1
"""Relative error up to which a rank cut without random signs is taken, which is biased, but has no noise."""

ORDERS = (16, 32, 64, 128)
"""Orders of a full transform that are considered."""

_NO_WORSE = 1.1
"""A deeper rank cut is taken where the error grows by no more than this factor."""

_LINE = {Hadamard: "token", LowRank: "channel"}


def measured_schemes(role: Role) -> tuple[Scheme, ...]:
    """What a calibration measures: the schemes of all profiles, and each with one setting changed."""
    found: dict[Scheme, None] = {}
    for profile in PROFILES.values():
        for scheme in profile.schemes(role):
            if not isinstance(scheme, Exact):
                found.update(dict.fromkeys((scheme, *_neighbours(scheme, role))))
    return tuple(found)


def _neighbours(scheme: Scheme, role: Role) -> Iterator[Scheme]:
    if isinstance(scheme, Hadamard | LowRank):
        if isinstance(scheme, LowRank) and scheme.signed:
            scheme = replace(scheme, signs="none")
            yield scheme
        yield replace(scheme, scale="tensor")
        if scheme.rounding != "nearest":
            yield replace(scheme, rounding="nearest")
    if isinstance(scheme, Hadamard) and role is Role.GRAD_INPUT:
        yield replace(scheme, order=64)
    if isinstance(scheme, LowRank):
        yield from (replace(scheme, rank=rank) for rank in (4, 16))
        yield replace(scheme, bits=4)
    yield from rule_of(scheme).relatives(scheme)


@dataclass(frozen=True)
class _Selected:
    scheme: Scheme
    error: float | None
    notes: tuple[str, ...]


def refined(
    choice: Choice,
    gemm: Gemm,
    calibration: Calibration | None,
    profile: DeviceProfile,
    max_error: float = LARGEST_ERROR,
) -> Choice:
    """The choice with its schemes fitted to the layer, and with the reason.

    Where prices decide, both the fitted and the original scheme stand for election, the more exact one first, and what
    is beyond ``max_error`` is refused; where the profile forces a scheme, the fitted one takes its place.

    Args:
        choice: what the policy allows.
        max_error: relative error that a scheme must not exceed.
    """
    if calibration is None or choice.written or calibration.product(gemm) is None:
        return choice
    if calibration.statistics(gemm) is None:
        nothing = "calibrated: an operand was zero in every batch, there is nothing to fit"
        return replace(choice, notes=tuple((scheme, nothing) for scheme in choice.schemes))
    chooser = _Chooser(gemm, calibration, profile, max_error)
    schemes: dict[Scheme, None] = {}
    refused, notes = list(choice.refused), []
    for asked in choice.schemes:
        found = chooser.select(asked)
        if found.notes:
            notes.append((found.scheme, f"calibrated: {', '.join(found.notes)}"))
        if not choice.priced or isinstance(asked, Exact):
            schemes[found.scheme] = None
            continue
        variations = {found.scheme: found.error, asked: chooser.error(asked)}
        for scheme, error in sorted(variations.items(), key=lambda entry: entry[1] or 0.0):
            if error is not None and error > max_error:
                refused.append((scheme, f"its error is beyond {max_error:g}, as calibrated"))
            else:
                schemes[scheme] = None
    return replace(choice, schemes=tuple(schemes), refused=tuple(dict.fromkeys(refused)), notes=tuple(notes))


@dataclass(frozen=True)
class _Chooser:
    gemm: Gemm
    calibration: Calibration
    profile: DeviceProfile
    max_error: float

    def error(self, scheme: Scheme) -> float | None:
        """Of the scheme as it would run; infinite where it is not legal.

        What was measured under random signs is one draw of a large noise, which would hide everything else. That noise
        is predicted, and the rest taken from the same scheme without signs.
        """
        rule = rule_of(scheme)
        ready = rule.refine(scheme, self.gemm, self.profile)
        if rule.illegal(ready, self.gemm):
            return float("inf")
        if isinstance(ready, LowRank) and ready.signed:
            return float((self._rounding(ready) ** 2 + self._cut(ready)) ** 0.5)
        return self.calibration.error(ready, self.gemm)

    def _rounding(self, scheme: Any) -> float:
        """The error apart from what a rank cut costs."""
        plain = replace(scheme, signs="none") if isinstance(scheme, LowRank) else scheme
        error = self.error(plain)
        assert error is not None
        return float(max(error**2 - self._cut(plain), 0.0) ** 0.5)

    def _cut(self, scheme: Scheme) -> float:
        statistics = self.calibration.statistics(self.gemm)
        assert statistics is not None
        return cut_energy(scheme, self.gemm, statistics) if isinstance(scheme, LowRank) else 0.0

    def select(self, asked: Scheme) -> _Selected:
        if not isinstance(asked, Hadamard | LowRank):
            fitted, note = rule_of(asked).calibrated(asked, self.gemm, self.error)
            return _Selected(fitted, self.error(fitted), tuple(filter(None, (note,))))
        scheme, notes = self._scale(asked)
        scheme, signs = self._signs(scheme)
        scheme, cut = self._deeper_cut(scheme)
        scheme, repairs = self._more_exact(scheme)
        return _Selected(scheme, self.error(scheme), tuple(filter(None, (notes, signs, cut, *repairs))))

    def _scale(self, asked: Any) -> tuple[Any, str]:
        """HOT's rule. What a rank cut drops is no matter of scales, and left out."""
        line, tensor = replace(asked, scale=_LINE[type(asked)]), replace(asked, scale="tensor", group=None)
        noise = [self._rounding(scheme) for scheme in (line, tensor)]
        if noise[0] < noise[1] / 2:
            return line, "" if line == asked else f"a scale per {line.scale} halves the rounding error"
        return tensor, "" if tensor == asked else f"a scale per {line.scale} would not halve the rounding error"

    def _signs(self, scheme: Any) -> tuple[Any, str]:
        if not isinstance(scheme, LowRank) or not scheme.signed:
            return scheme, ""
        plain = replace(scheme, signs="none")
        if (self.error(plain) or 0.0) > ALIKE:
            return scheme, ""
        return plain, f"no random signs: tokens are alike, {scheme.rank} sequencies are off by {ALIKE:g} at most"

    def _deeper_cut(self, scheme: Any) -> tuple[Any, str]:
        if not isinstance(scheme, LowRank) or scheme.rank == scheme.order:
            return scheme, ""
        limit = _NO_WORSE * (self.error(scheme) or 0.0)
        for rank in (2, 4):
            deeper = replace(scheme, rank=rank) if rank < scheme.rank else scheme
            if deeper is not scheme and (self.error(deeper) or 0.0) <= min(limit, self.max_error):
                return deeper, f"rank {rank} loses no more than {scheme.rank}"
        return scheme, ""

    def _more_exact(self, scheme: Any) -> tuple[Any, list[str]]:
        """Turn one setting after the other until the error is within bounds; the most exact found where none is."""
        best = last = scheme
        turned: list[str] = []
        told: list[str] = []
        for field, value, note in _REPAIRS[type(scheme)]:
            present, least = getattr(last, field), self.error(best) or 0.0
            if least <= self.max_error:
                break
            if present == value or (isinstance(value, int) and present > value):
                continue
            changed = replace(last, **{field: value})
            error = self.error(changed) or 0.0
            if error > 0.99 * (self.error(last) or 0.0):
                continue  # it is not legal, or helps nothing
            last, turned = changed, [*turned, note]
            if error < least:
                best, told = changed, turned
        return best, [f"{' and '.join(told)} against an error beyond {self.max_error:g}"] if told else []


_REPAIRS: dict[type[Scheme], tuple[tuple[str, Any, str], ...]] = {
    Hadamard: (
        ("scale", "token", "a scale per token"),
        ("bits", 8, "8 bits"),
        ("order", 64, "order 64"),
        ("order", 128, "order 128"),
        ("rounding", "nearest", "rounding to nearest"),
    ),
    LowRank: (
        ("scale", "channel", "a scale per channel"),
        ("rank", 12, "rank 12"),
        ("rank", 16, "rank 16"),
        ("bits", 8, "8 bits"),
        ("rounding", "nearest", "rounding to nearest"),
    ),
}
"""Settings that make a scheme more exact, the cheapest first. Rounding to nearest comes last: it is biased."""
