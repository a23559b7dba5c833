"""Schemes of HOT's published code, where it differs from the paper (arXiv 2503.21261): for comparison, no default.

- g_w: the blocks of tokens are as long as the largest power of two that divides the tokens of *one* image (197: 1, no
  transform at all), and a triangle of rows is kept instead of the lowest: 10 of 16, not 8.
- x and w are rounded to 8 bits, in the range that SAWB fits for 4.
- With layer-wise selection on, which here means with a calibration, g_w takes its gradient in 4 bits, and g_x chooses
  between one scale and one per token.

g_y is rounded stochastically, to 4 bits for g_x and to 8 for g_w, as in the paper. The published pseudo-random
rounding, which compares the wrong bits and is biased by a quarter of a step, is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .errors import SchemeError
from .scheme import ROUNDINGS, Scheme

__all__ = ["RANGES", "ROWS", "ClippedGradInput", "ClippedGradWeight"]

RANGES = ("sawb", "minmax")
"""SAWB: 12.1 √E[v²] − 12.2 E|v|; minmax: the largest magnitude."""

ROWS = ("triangle", "all")


def _check(name: str, bits: dict[str, int], choices: dict[str, tuple[str, tuple[str, ...]]], order: int | None) -> None:
    for field, value in bits.items():
        if not 2 <= value <= 8:
            raise SchemeError(f"{name}: {field} must be from 2 to 8, got {value}")
    for field, (choice, allowed) in choices.items():
        if choice not in allowed:
            raise SchemeError(f"{name}: {field} must be one of {', '.join(allowed)}, got {choice!r}")
    if order is not None and (order < 1 or order & (order - 1)):
        raise SchemeError(f"{name}: order must be a power of two, got {order}")


@dataclass(frozen=True)
class ClippedGradInput(Scheme):
    """g_x = Q(g_y B) Q(Bᵀ w), B = I ⊗ H along the outputs O, the weight in a clipped range and in more bits.

    Attributes:
        bits: of g_y, 2..8.
        weight_bits: of the weight, 2..8.
        order: of the transform.
        scale: of g_y: ``"tensor"``, or ``"token"``, one per row. The weight has one.
        rounding: of g_y; the weight is rounded to nearest.
        range: of the weight, one of ``RANGES``.
    """

    kind: ClassVar[str] = "clipped_grad_input"
    bits: int = 4
    weight_bits: int = 8
    order: int = 16
    scale: str = "tensor"
    rounding: str = "stochastic"
    range: str = "sawb"

    def __post_init__(self) -> None:
        choices = {
            "scale": (self.scale, ("token", "tensor")),
            "rounding": (self.rounding, ROUNDINGS),
            "range": (self.range, RANGES),
        }
        _check(self.kind, {"bits": self.bits, "weight_bits": self.weight_bits}, choices, self.order)
        if not 2 <= self.order <= 128:
            raise SchemeError(f"{self.kind}: order must be from 2 to 128, got {self.order}")

    def __str__(self) -> str:
        bits = f"g {self.bits} and w {self.weight_bits} bits"
        return f"hadamard-{self.order} {bits}, per {self.scale}, g {self.rounding}, w {self.range}"


@dataclass(frozen=True)
class ClippedGradWeight(Scheme):
    """g_w = Q(Ĥ g_y)ᵀ Q(Ĥ x), Ĥ along the tokens, x in a clipped range; one scale for each operand.

    Attributes:
        bits: of g_y, 2..8.
        input_bits: of x, 2..8.
        order: tokens of a block; None: the largest power of two that divides one sequence's tokens, as published.
        rows: kept of each block: ``"triangle"`` (10 of 16) or ``"all"``.
        rounding: of g_y; x is rounded to nearest.
        range: of x, one of ``RANGES``.
    """

    kind: ClassVar[str] = "clipped_grad_weight"
    bits: int = 8
    input_bits: int = 8
    order: int | None = None
    rows: str = "triangle"
    rounding: str = "stochastic"
    range: str = "sawb"

    def __post_init__(self) -> None:
        choices = {
            "rows": (self.rows, ROWS),
            "rounding": (self.rounding, ROUNDINGS),
            "range": (self.range, RANGES),
        }
        _check(self.kind, {"bits": self.bits, "input_bits": self.input_bits}, choices, self.order)

    def __str__(self) -> str:
        block = {None: "the largest order", 1: "1, no transform"}.get(self.order, f"{self.order}")
        bits = f"g {self.bits} and x {self.input_bits} bits"
        return f"{self.rows} of {block}, {bits}, per tensor, g {self.rounding}, x {self.range}"
