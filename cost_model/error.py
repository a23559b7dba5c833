"""Predicted relative error of a scheme: ‖result − exact‖ / ‖exact‖, root mean square over the draws of the rounding.

With left' and right' the transformed operands, g their gains and d their noise (``quantiser``),

    out ≈ g_l g_r · left' right' + g_r · d_l right' + g_l · left' d_r + d_l d_r

The noise is white, so that ‖d_l right'‖² = E[d_l²] · M · ‖right'‖² whatever right' is: the energies add, relative to
‖left‖² ‖right‖² / K, and ``coherence`` says how much larger ‖out‖² is than that. A rank cut drops what it drops, and
the noise is that of what is kept; behind random signs it drops nothing, and adds noise of its own.

A scheme of one's own is predicted once it has a model: ``@error_model(MyScheme)`` on a function of (scheme, gemm,
statistics).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hadamard_fx.errors import SchemeError
from hadamard_fx.plan import Gemm
from hadamard_fx.scheme import Exact, Hadamard, LowRank, Scheme

from .quantiser import EXACT, Noise, quantise
from .statistics import Extent, Operand, Statistics, distinct, shared_values

__all__ = [
    "GAUSSIAN",
    "White",
    "cut_energy",
    "error_model",
    "has_error_model",
    "product_error",
    "relative_error",
    "white",
]

GAUSSIAN = Statistics()
"""Independent Gaussian operands: what is assumed where nothing was measured."""

Model = Callable[[Any, Gemm, Statistics], float]
_MODELS: dict[type[Scheme], Model] = {}


def error_model(scheme: type[Scheme]) -> Callable[[Model], Model]:
    """Decorator: make a function of (scheme, gemm, statistics) the prediction for a class of schemes.

    Raises:
        SchemeError: the class has one already.
    """

    def register(model: Model) -> Model:
        known = _MODELS.setdefault(scheme, model)
        if (known.__module__, known.__qualname__) != (model.__module__, model.__qualname__):
            raise SchemeError(f"two error models for scheme {scheme.kind!r}")
        return model

    return register


def has_error_model(scheme: Scheme) -> bool:
    """Whether ``relative_error`` can predict the scheme."""
    from . import error_clipped, error_saturating, error_straight_through  # noqa: F401  (they register, and need this module)

    return type(scheme) in _MODELS


def relative_error(scheme: Scheme, gemm: Gemm, statistics: Statistics | None = None) -> float:
    """Predicted relative root-mean-square error of the product under a scheme, 0 for exact.

    Args:
        scheme: refined for the device, so that its group is known (None counts as no groups).
        gemm: its sizes and the side of the gradient; a symbolic size counts by its hint.
        statistics: of the operands; independent Gaussian ones by default.

    Raises:
        SchemeError: nobody registered a model for this class of schemes.
    """
    if not has_error_model(scheme):
        raise SchemeError(
            f"the error of scheme {scheme.kind!r} cannot be predicted: register a function of (scheme, gemm, "
            "statistics) with hadamard_fx.cost_model.error.error_model"
        )
    if 0 in (gemm.M.hint, gemm.N.hint, gemm.K.hint):
        return 0.0
    return _MODELS[type(scheme)](scheme, gemm, statistics or GAUSSIAN)


@dataclass(frozen=True)
class White:
    """Energy of a product of white noise, over ‖out‖², where the noise and the operand that it meets have unit energy.

    Attributes:
        left, right: noise of that operand times the other one.
        both: noise times noise.
    """

    left: float = 1.0
    right: float = 1.0
    both: float = 1.0


def product_error(
    left: Noise, right: Noise, white: White = White(), *, dropped: float = 0.0, sums: Noise = EXACT
) -> float:
    """Relative error of a product of two noisy operands.

    Args:
        left, right: what became of the operands.
        white: how their noise meets the other operand.
        dropped: energy of what a rank cut leaves out, over ‖out‖².
        sums: what became of the sums, where accumulators saturate.
    """
    gain = left.gain * right.gain
    noise = right.gain**2 * left.variance * white.left + left.gain**2 * right.variance * white.right
    noise += left.variance * right.variance * white.both
    kept = max(1 - dropped, 0.0)
    whole = sums.gain * gain - 1
    energy = whole**2 * kept + dropped + sums.gain**2 * noise + sums.variance * (gain**2 * kept + noise)
    return float(energy**0.5)


def white(length: int, order: int, roundings: tuple[str, str], share: float) -> White:
    """How noise meets the other operand, behind a transform of blocks that may be padded.

    A padded block repeats its values. Rounding that draws no fresh numbers repeats its errors too, which then add up
    instead of cancelling.

    Args:
        length: K, without padding.
        roundings: of the left and of the right operand.
        share: ‖left‖² ‖right‖² / (K ‖out‖²), of the kept sequencies.
    """
    _, repeats = distinct(length, order)
    rest = length % order
    columns = -(-length // order) * order
    coherent = (length - rest + rest * repeats) / length
    both = (length - rest + (order * repeats if rest else 0)) / columns
    left, right = (1.0 if rounding == "stochastic" else coherent for rounding in roundings)
    share *= length / columns
    return White(left * share, right * share, (1.0 if "stochastic" in roundings else both) * share)


@error_model(Exact)
def _exact(scheme: Exact, gemm: Gemm, statistics: Statistics) -> float:
    return 0.0


@error_model(Hadamard)
def _hadamard(scheme: Hadamard, gemm: Gemm, statistics: Statistics) -> float:
    gradient, other = statistics.sides(gemm)
    order, bits, k = scheme.order, scheme.bits, gemm.K.hint
    line: Extent = "line" if scheme.scale == "token" else "tensor"
    coming = _noise(gradient, order, order, bits, scheme.group or line, k, gemm.gradient_extent, scheme.rounding)
    weight = _noise(other, order, order, bits, line, k, gemm.saved_extent, "nearest")
    return product_error(coming, weight, white(k, order, (scheme.rounding, "nearest"), 1 / statistics.coherence))


@error_model(LowRank)
def _low_rank(scheme: LowRank, gemm: Gemm, statistics: Statistics) -> float:
    gradient, other = statistics.sides(gemm)
    rank, order, k = scheme.rank, scheme.order, gemm.K.hint
    extent: Extent = "line" if scheme.scale == "channel" else "tensor"
    if scheme.group:
        extent = scheme.group if extent == "line" else -scheme.group
    coming = _noise(gradient, order, rank, scheme.bits, extent, k, gemm.gradient_extent, scheme.rounding)
    saved = _noise(other, order, rank, scheme.bits, extent, k, gemm.saved_extent, "nearest")
    kept = gradient.kept_energy(rank, order) * other.kept_energy(rank, order) * order / rank
    if scheme.signed:  # no sequency holds more than another
        kept = order / rank
    meets = white(k, order, (scheme.rounding, "nearest"), kept / statistics.coherence)
    cut = cut_energy(scheme, gemm, statistics)
    if not scheme.signed:
        return product_error(coming, saved, meets, dropped=cut)
    return float((product_error(coming, saved, meets) ** 2 + cut) ** 0.5)


def cut_energy(scheme: LowRank, gemm: Gemm, statistics: Statistics) -> float:
    """Square of the relative error of a rank cut alone, without rounding.

    With C = Ĥᵀ Ĥ / rank, whose diagonal is 1, and random signs, the error is a sum over pairs of tokens of each block,
    E‖·‖² = Σ C_ij² (‖x_i‖² ‖g_j‖² + x_i·x_j g_i·g_j), with Σ C_ij² = order (order / rank - 1).
    How alike tokens of a block are, ‖x‖² times that, follows from what the lowest sequencies hold.
    """
    rank, order = scheme.rank, scheme.order
    if not scheme.signed:
        return statistics.dropped_energy(rank, order)
    share = rank / order
    alike = [(side.kept_energy(rank, order) - share) / (1 - share) for side in statistics.sides(gemm)]
    return (1 / share - 1) * (1 + alike[0] * alike[1]) / statistics.coherence


def _noise(
    operand: Operand, order: int, rank: int, bits: int, extent: Extent, length: int, lines: int, rounding: str
) -> Noise:
    """Of an operand that is transformed and rounded."""
    shape = operand.shape(order, rank, extent, length, lines)
    values = shared_values(extent, order, rank, length, lines)
    return quantise(shape, int(2 ** (bits - 1)) - 1, rounding, values)
