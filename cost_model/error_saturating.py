"""Predicted error of HDQT's schemes: integers of few bits, rounded once more for the gradients, and sums that saturate.

The sums of a tile are taken to be Gaussian, their deviation that of independent operands; ``coherence`` widens it.
Source: HDQT (arXiv 2310.03675).
"""

from __future__ import annotations

from hadamard_fx.plan import Gemm
from hadamard_fx.saturating import SaturatingForward, SaturatingGradInput, SaturatingGradWeight, accumulator_limit

from .error import White, error_model, product_error, white
from .quantiser import Noise, quantise, requantise, saturate
from .statistics import GAUSSIAN_FLATNESS, Operand, Shape, Statistics

__all__: list[str] = []


@error_model(SaturatingForward)
def _forward(scheme: SaturatingForward, gemm: Gemm, statistics: Statistics) -> float:
    sides = ((statistics.left, gemm.M.hint), (statistics.right, gemm.N.hint))
    noises, units, k = [], 1.0, gemm.K.hint
    for operand, lines in sides:
        shape, top = _integers(operand, scheme.bits, k, lines)
        noises.append(quantise(shape, top, "nearest", k * lines, scheme.alpha))
        units *= top / (scheme.alpha * shape.peak)
    meets = white(k, 1, ("nearest", "nearest"), 1 / statistics.coherence)
    tile = min(scheme.tile, k)
    return _finished(noises, units, tile, k, scheme.accumulator_bits, statistics.coherence, meets)


@error_model(SaturatingGradInput)
def _grad_input(scheme: SaturatingGradInput, gemm: Gemm, statistics: Statistics) -> float:
    return _gradient(scheme, scheme.weight_rounding, gemm, statistics)


@error_model(SaturatingGradWeight)
def _grad_weight(scheme: SaturatingGradWeight, gemm: Gemm, statistics: Statistics) -> float:
    return _gradient(scheme, scheme.input_rounding, gemm, statistics)


def _gradient(
    scheme: SaturatingGradInput | SaturatingGradWeight, saved_rounding: str, gemm: Gemm, statistics: Statistics
) -> float:
    """g_y is transformed and rounded; the other operand was rounded in the forward and is transformed and rounded
    again."""
    k, top = gemm.K.hint, int(2 ** (scheme.bits - 1)) - 1
    order = scheme.order or max(k & -k, 1)
    gradient, saved = statistics.sides(gemm)
    lines = gemm.saved_extent
    padded = -(-k // order) * order
    roundings = (scheme.rounding, saved_rounding)
    coming = gradient.shape(order, order, "tensor", k, gemm.gradient_extent)
    left = quantise(coming, top, scheme.rounding, padded * gemm.gradient_extent, scheme.alpha)
    plain, first_top = _integers(saved, scheme.bits, k, lines)
    first = quantise(plain, first_top, "nearest", k * lines, scheme.alpha)
    if order == 1:
        right = first.then(requantise(plain, first_top, top, saved_rounding, scheme.alpha))
        again = Shape(max(scheme.alpha * plain.peak / first.energy**0.5, 1.0), GAUSSIAN_FLATNESS)
    else:
        again = saved.shape(order, order, "tensor", k, lines)
        right = first.then(quantise(again, top, saved_rounding, padded * lines, scheme.alpha))
    units = top / (scheme.alpha * coming.peak) * top / (scheme.alpha * again.peak)
    tile = min(scheme.tile or padded, padded)
    meets = white(k, order, roundings, 1 / statistics.coherence)
    coherence = statistics.coherence * padded / k
    return _finished([left, right], units, tile, padded, scheme.accumulator_bits, coherence, meets)


def _integers(operand: Operand, bits: int, length: int, lines: int) -> tuple[Shape, int]:
    """The shape of an untransformed operand under one scale, and its largest integer."""
    top = 2**bits - 1 if operand.nonnegative else int(2 ** (bits - 1)) - 1
    return operand.shape(1, 1, "tensor", length, lines), top


def _finished(
    noises: list[Noise],
    units: float,
    tile: int,
    columns: int,
    accumulator_bits: int,
    coherence: float,
    meets: White,
) -> float:
    """Relative error behind the accumulators.

    Args:
        noises: of the two operands.
        units: product of the two signals' root mean squares, in integers.
        tile: products in a sum that saturates.
        columns: of the contracted axis, padding included.
        coherence: relative to independent operands of that many columns.
        meets: how the operands' noise meets the other operand.
    """
    left, right = noises
    # The coherent part grows with the square of the terms; a tile holds its share of it.
    in_tile = 1 + (coherence - 1) * tile / columns if coherence > 1 else coherence
    cross = left.gain**2 * right.variance + right.gain**2 * left.variance + left.variance * right.variance
    energy = (left.gain * right.gain) ** 2 * in_tile + cross
    deviation = units * (tile * energy) ** 0.5
    clamped = saturate(deviation, accumulator_limit(accumulator_bits))
    return product_error(left, right, meets, sums=clamped)
