"""The scheme of LBP-WHT: gradients of a few low frequencies of the image that the tokens make up.

Source: LBP-WHT (arXiv 2309.15275), "Efficient Low-rank Backpropagation for Vision Transformer Adaptation". HOT (section
4) compares with it: it adapts trained models, and fails to train one from scratch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .errors import SchemeError
from .scheme import Scheme

__all__ = ["LowPass"]


@dataclass(frozen=True)
class LowPass(Scheme):
    """g_x = Bᵀ((B g_y) w) and g_w = (B g_y)ᵀ (B x), B the Walsh functions of the tokens' grid below a diagonal.

    The tokens of an image are ``prefix`` ones (a class token), which B leaves alone, and a grid of height × width, row
    by row. The grid is cut into tiles of order × order, filled up with zeros; of a tile's Walsh functions (i, j), i and
    j their sequencies, B keeps those with i + j < kept. g_x is low-pass, so that B has to be inverted outside of the
    product: Bᵀ B is no identity.

    Attributes:
        height, width: of the grid, in tokens.
        prefix: tokens in front of the grid.
        order: side of a tile, a power of two from 2 to 16.
        kept: 1 keeps the mean of each tile, 2·order - 1 all.
    """

    kind: ClassVar[str] = "low_pass"
    height: int = 0
    width: int = 0
    prefix: int = 0
    order: int = 8
    kept: int = 4

    def __post_init__(self) -> None:
        if self.order not in (2, 4, 8, 16):
            raise SchemeError(f"low_pass: order must be 2, 4, 8 or 16, got {self.order}")
        if not 1 <= self.kept < 2 * self.order:
            raise SchemeError(f"low_pass: kept must be from 1 to {2 * self.order - 1}, got {self.kept}")
        if min(self.height, self.width, self.prefix) < 0:
            raise SchemeError("low_pass: height, width and prefix must not be negative")

    @property
    def tokens(self) -> int:
        """Of one image."""
        return self.prefix + self.height * self.width

    @property
    def functions(self) -> tuple[tuple[int, int], ...]:
        """The Walsh functions (i, j) of a tile that are kept."""
        within = range(self.order)
        return tuple((i, j) for i in within for j in within if i + j < self.kept)

    @property
    def coefficients(self) -> int:
        """What is left of one image's tokens."""
        tiles = -(-self.height // self.order) * -(-self.width // self.order)
        return self.prefix + tiles * len(self.functions)

    def __str__(self) -> str:
        grid = f"{self.prefix} + " if self.prefix else ""
        return f"low-pass {len(self.functions)} of {self.order**2}, {grid}{self.height}×{self.width} tokens"
