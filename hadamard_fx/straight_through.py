"""The scheme of QORNN: the weights of a recurrence on a grid of k bits, with a straight-through gradient.

Source: QORNN (arXiv 2402.04012): h_t = σ(W h_{t−1} + U x_t), W and U quantised by q_k, the output layer not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .errors import SchemeError
from .scheme import Scheme

__all__ = ["APPLIES_TO", "WEIGHT_RANGES", "StraightThrough"]

WEIGHT_RANGES = ("minmax", "mse")
"""How α is found from the weight alone; learned ranges need a parameter, which a graph pass cannot add."""

APPLIES_TO = ("recurrence", "any")


@dataclass(frozen=True)
class StraightThrough(Scheme):
    """y = x q_k(w)ᵀ and g_x = g_y q_k(w); g_w = g_yᵀ x is the gradient of w itself.

    q_k(w) = (α/2^{k−1}) · clip(round(2^{k−1} w/α), −2^{k−1}, 2^{k−1} − 1), rounded half to even, made once for all
    products of that weight. x and g_y are not quantised; the products are those of floating point.

    Attributes:
        bits: k, 2..16.
        range: of α: ``"minmax"`` (max|w|, as published) or ``"mse"`` (least squared error).
        per_channel: an α for each row of w as it is stored, instead of one for all.
        applies_to: ``"recurrence"``: recurrent products and the inputs of a recurrence (``passes/find_recurrence.py``);
            ``"any"``: every linear layer, for a cell that is compiled alone and shows no recurrence.
    """

    kind: ClassVar[str] = "straight_through"
    bits: int = 5
    range: str = "minmax"
    per_channel: bool = False
    applies_to: str = "recurrence"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise SchemeError(f"straight_through: bits must be from 2 to 16, got {self.bits}")
        for field, allowed in (("range", WEIGHT_RANGES), ("applies_to", APPLIES_TO)):
            if getattr(self, field) not in allowed:
                raise SchemeError(
                    f"straight_through: {field} must be one of {', '.join(allowed)}, got {getattr(self, field)!r}"
                )

    def __str__(self) -> str:
        return f"w {self.bits} bits, {self.range}, per {'channel' if self.per_channel else 'tensor'}"
