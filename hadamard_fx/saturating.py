"""Schemes of HDQT: integers of few bits, and accumulators so narrow that they saturate.

Source: HDQT (arXiv 2310.03675; PMLR 274:198). A scheme per product, because the three differ in all but the numbers:
the forward has no transform and clamps every tile of its sum, the gradients are transformed along the contracted axis
and clamp once. The operands of both gradients are the *integers* of the forward, x̂ and ŵ, not x and w.

An accumulator of A bits holds −N..N with N = 2^(A−1) − 1; a sum beyond is N, with its sign. It neither wraps around nor
is it rescaled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .errors import SchemeError
from .scheme import ROUNDINGS, Scheme

__all__ = ["TILES", "SaturatingForward", "SaturatingGradInput", "SaturatingGradWeight", "accumulator_limit"]

TILES = (16, 32, 64, 128)
"""Products that are summed up before an accumulator saturates."""


def accumulator_limit(bits: int) -> int:
    """N = 2^(A−1) − 1, the largest sum that an accumulator of ``bits`` bits holds: 127 for 8."""
    return int(2 ** (bits - 1)) - 1


def _check(name: str, bits: int, alpha: float, tile: int, accumulator_bits: int, tiles: tuple[int, ...]) -> None:
    if not 3 <= bits <= 8:
        raise SchemeError(f"{name}: bits must be from 3 to 8, got {bits}")
    if not 0 < alpha <= 1:
        raise SchemeError(f"{name}: alpha must be above 0 and at most 1, got {alpha}")
    if tile not in tiles:
        raise SchemeError(f"{name}: tile must be one of {', '.join(map(str, tiles))}, got {tile}")
    if not 4 <= accumulator_bits <= 32:
        raise SchemeError(f"{name}: accumulator_bits must be from 4 to 32, got {accumulator_bits}")


def _check_backward(name: str, order: int | None, **roundings: str) -> None:
    if order is not None and (order < 1 or order & (order - 1)):
        raise SchemeError(f"{name}: order must be a power of two, or none for the largest that divides, got {order}")
    for field, rounding in roundings.items():
        if rounding not in ROUNDINGS:
            raise SchemeError(f"{name}: {field} must be one of {', '.join(ROUNDINGS)}, got {rounding!r}")


def _transform(order: int | None) -> str:
    return {None: "largest order", 1: "no transform"}.get(order, f"order {order}")


def _sums(accumulator_bits: int, tile: int) -> str:
    return f"{accumulator_bits}-bit sums of {tile or 'all'}"


@dataclass(frozen=True)
class SaturatingForward(Scheme):
    """y = s_x s_w Σ_tiles clamp(x̂_tile ŵ_tileᵀ, ±N), the sum over the tiles wide (HDQT, section "forward").

    x̂ = nearest(clamp(x, ±α max|x|)/s), s = α max|x| / (2^(bits−1) − 1); where no x is negative, after a ReLU for
    instance, the integers are 0..2^bits − 1 and s = α max x / (2^bits − 1). ŵ likewise, always with a sign. Both round
    to nearest: a forward that is computed again must give the same numbers.

    The gradient is straight through: neither the rounding, the clamp of the operands nor that of the sums masks it; the
    clamp's range shows in the backward because x̂ and ŵ are what the gradients are multiplied with.

    Attributes:
        bits: of both operands, 3..8.
        alpha: share of the largest magnitude that is the end of the range.
        tile: products summed up before the accumulator saturates.
        accumulator_bits: A, 4..32.
    """

    kind: ClassVar[str] = "saturating_forward"
    bits: int = 4
    alpha: float = 0.975
    tile: int = 32
    accumulator_bits: int = 8

    def __post_init__(self) -> None:
        _check(self.kind, self.bits, self.alpha, self.tile, self.accumulator_bits, TILES)

    def __str__(self) -> str:
        return f"{self.bits} bits, {_sums(self.accumulator_bits, self.tile)}, per tensor, nearest"


@dataclass(frozen=True)
class SaturatingGradInput(Scheme):
    """g_x = clamp(Q(g_y H) Q(H ŵ), ±N) · scales / order, H along the outputs O (HDQT, section "backward").

    Attributes:
        bits: of both operands, 3..8.
        alpha: share of the largest magnitude that is the end of the range.
        tile: products summed up before the accumulator saturates, 0 for all (as published).
        accumulator_bits: A, 4..32.
        order: of the transform; None: the largest power of two that divides O, as published.
        rounding: of g_y.
        weight_rounding: of H ŵ.
    """

    kind: ClassVar[str] = "saturating_grad_input"
    bits: int = 4
    alpha: float = 0.975
    tile: int = 0
    accumulator_bits: int = 8
    order: int | None = None
    rounding: str = "stochastic"
    weight_rounding: str = "nearest"

    def __post_init__(self) -> None:
        _check(self.kind, self.bits, self.alpha, self.tile, self.accumulator_bits, (0, *TILES))
        _check_backward(self.kind, self.order, rounding=self.rounding, weight_rounding=self.weight_rounding)

    def __str__(self) -> str:
        sums = _sums(self.accumulator_bits, self.tile)
        return f"{_transform(self.order)}, {self.bits} bits, {sums}, g {self.rounding}, w {self.weight_rounding}"


@dataclass(frozen=True)
class SaturatingGradWeight(Scheme):
    """g_w = clamp(Q(g_yᵀ H) Q(H x̂), ±N) · scales / order, H along the tokens L (HDQT, section "backward").

    x̂, made in the forward, is all that is saved.

    Attributes:
        bits: of both operands, 3..8.
        alpha: share of the largest magnitude that is the end of the range.
        tile: products summed up before the accumulator saturates, 0 for all (as published).
        accumulator_bits: A, 4..32.
        order: of the transform; None: the largest power of two that divides L, as published.
        rounding: of g_y.
        input_rounding: of H x̂.
    """

    kind: ClassVar[str] = "saturating_grad_weight"
    bits: int = 4
    alpha: float = 0.975
    tile: int = 0
    accumulator_bits: int = 8
    order: int | None = None
    rounding: str = "stochastic"
    input_rounding: str = "stochastic"

    def __post_init__(self) -> None:
        _check(self.kind, self.bits, self.alpha, self.tile, self.accumulator_bits, (0, *TILES))
        _check_backward(self.kind, self.order, rounding=self.rounding, input_rounding=self.input_rounding)

    def __str__(self) -> str:
        sums = _sums(self.accumulator_bits, self.tile)
        return f"{_transform(self.order)}, {self.bits} bits, {sums}, g {self.rounding}, x {self.input_rounding}"
