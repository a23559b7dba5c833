"""Predicted error of the schemes of HOT's published code: a clipped range, and a triangle of rows.

A triangle is taken for a rank cut that keeps as many rows: a calibration measures the sequencies one by one, not the
pairs of a triangle.
"""

from __future__ import annotations

from hadamard_fx.kernels.quantize_clipped import largest_order
from hadamard_fx.kernels.quantize_kept import SAWB, kept_rows
from hadamard_fx.plan import Gemm
from hadamard_fx.published_code import ClippedGradInput, ClippedGradWeight

from .error import error_model, product_error, white
from .quantiser import Noise, quantise
from .statistics import Extent, Shape, Statistics, shared_values

__all__: list[str] = []


@error_model(ClippedGradInput)
def _grad_input(scheme: ClippedGradInput, gemm: Gemm, statistics: Statistics) -> float:
    gradient, weight = statistics.sides(gemm)
    order, k = scheme.order, gemm.K.hint
    extent: Extent = "line" if scheme.scale == "token" else "tensor"
    shape = gradient.shape(order, order, extent, k, gemm.gradient_extent)
    values = shared_values(extent, order, order, k, gemm.gradient_extent)
    coming = quantise(shape, int(2 ** (scheme.bits - 1)) - 1, scheme.rounding, values)
    shape = weight.shape(order, order, "tensor", k, gemm.saved_extent)
    other = _ranged(
        shape, scheme.weight_bits, scheme.range, shared_values("tensor", order, order, k, gemm.saved_extent)
    )
    return product_error(coming, other, white(k, order, (scheme.rounding, "nearest"), 1 / statistics.coherence))


@error_model(ClippedGradWeight)
def _grad_weight(scheme: ClippedGradWeight, gemm: Gemm, statistics: Statistics) -> float:
    gradient, saved = statistics.sides(gemm)
    k = gemm.K.hint
    order = scheme.order or largest_order(gemm.sequence or k)
    rank = kept_rows(order, scheme.rows)
    shape = gradient.shape(order, rank, "tensor", k, gemm.gradient_extent)
    values = shared_values("tensor", order, rank, k, gemm.gradient_extent)
    coming = quantise(shape, int(2 ** (scheme.bits - 1)) - 1, scheme.rounding, values)
    shape = saved.shape(order, rank, "tensor", k, gemm.saved_extent)
    values = shared_values("tensor", order, rank, k, gemm.saved_extent)
    other = _ranged(shape, scheme.input_bits, scheme.range, values)
    kept = gradient.kept_energy(rank, order) * saved.kept_energy(rank, order) * order / rank
    meets = white(k, order, (scheme.rounding, "nearest"), kept / statistics.coherence)
    dropped = statistics.dropped_energy(rank, order) if rank < order else 0.0
    return product_error(coming, other, meets, dropped=dropped)


def _ranged(shape: Shape, bits: int, rule: str, values: int) -> Noise:
    """Rounding to nearest; where SAWB's range is wider than the largest magnitude, its outer integers stay unused."""
    top = int(2 ** (bits - 1)) - 1
    if rule != "sawb":
        return quantise(shape, top, "nearest", values)
    share = max(SAWB[0] - SAWB[1] * shape.flatness, shape.flatness) / shape.peak
    used = top if share <= 1 else max(int(top / share), 1)
    return quantise(shape, used, "nearest", values, share * used / top)
