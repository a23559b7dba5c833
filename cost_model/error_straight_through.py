"""Predicted error of QORNN's scheme: one operand, the weight, is rounded to nearest, and nothing is transformed.

A range of least squared error is predicted like max|w|, which is an upper estimate of its error. Source: QORNN
(arXiv 2402.04012).
"""

from __future__ import annotations

from hadamard_fx.plan import Gemm
from hadamard_fx.straight_through import StraightThrough

from .error import error_model, product_error, white
from .quantiser import EXACT, quantise
from .statistics import Extent, Statistics

__all__: list[str] = []


@error_model(StraightThrough)
def _straight_through(scheme: StraightThrough, gemm: Gemm, statistics: Statistics) -> float:
    other = statistics.sides(gemm)[1] if gemm.gradient else statistics.right
    lines = gemm.saved_extent if gemm.gradient else gemm.N.hint
    # A row of w as it is stored is contracted in the forward, and spread over the lines in g_x.
    extent: Extent = "line" if scheme.per_channel and not gemm.gradient else "tensor"
    k = gemm.K.hint
    shape = other.shape(1, 1, extent, k, lines)
    values = k if extent == "line" else k * lines
    rounded = quantise(shape, int(2 ** (scheme.bits - 1)), "nearest", values)
    return product_error(EXACT, rounded, white(k, 1, ("nearest", "nearest"), 1 / statistics.coherence))
