"""What the error model knows of a product's operands: Gaussian data by default, measured where a calibration saw them.

    out[M, N] = left[M, K] @ right[K, N]

A *line* of an operand is what is contracted at once: a row of the left one, a column of the right one. The transform
and the scales run along lines, so that one value serves both operands and all three products of a layer.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from scipy import special

from hadamard_fx.plan import Gemm

__all__ = [
    "GAUSSIAN_FLATNESS",
    "RANKS",
    "RANK_ORDER",
    "Extent",
    "Operand",
    "Shape",
    "Statistics",
    "distinct",
    "expected_peak",
    "shared_values",
]

Extent = str | int
"""The values that share a scale: those of a ``"line"``, those of the ``"tensor"``, or a number of neighbours in a line;
a negative number: those neighbours of all lines."""

GAUSSIAN_FLATNESS = float(np.sqrt(2 / np.pi))
"""Mean magnitude of a Gaussian over its root mean square."""

RANK_ORDER = 16
"""Order of the transform whose sequencies a calibration measures one by one."""
RANKS = tuple(range(2, RANK_ORDER + 1))
"""Ranks of which energies and truncation errors are known."""


@dataclass(frozen=True)
class Shape:
    """How the values that share a scale are distributed.

    Attributes:
        peak: root mean square of the scales' largest magnitudes over that of the values, ≥ 1.
        flatness: mean magnitude over the root mean square, each value weighed by its scale's largest magnitude; 0.798
            for Gaussian data, less where few large values stand among many small ones.
    """

    peak: float
    flatness: float = GAUSSIAN_FLATNESS


@dataclass(frozen=True)
class Operand:
    """One operand of a product.

    Attributes:
        rms, maximum: root mean square and largest magnitude, in the tensor's own unit.
        nonnegative: no element is below zero.
        spread: standard deviation of ln(root mean square of a line) over the lines that are not zero.
        shapes: (order, rank, extent) -> shape of the transformed values. ``rank`` is the order for a full transform,
            ``extent`` as ``Extent`` says.
        kept: rank of ``RANKS`` -> share of the energy in the lowest sequencies of each block of ``RANK_ORDER``.
    """

    rms: float = 1.0
    maximum: float = 0.0
    nonnegative: bool = False
    spread: float = 0.0
    shapes: tuple[tuple[tuple[int, int, Extent], Shape], ...] = ()
    kept: tuple[float, ...] = ()
    _table: dict[tuple[int, int, Extent], Shape] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._table.update(self.shapes)

    def shape(self, order: int, rank: int, extent: Extent, length: int, lines: int) -> Shape:
        """The shape of the transformed values under one kind of scale.

        Where it was not measured, that of the nearest order; a group's peak then follows from a line's by the ratio
        that Gaussian data shows. Where nothing was measured, Gaussian data's.

        Args:
            order, rank: of the transform; order 1 is none.
            extent: of a scale.
            length: K, of a line.
            lines: M or N.
        """
        if not self._table:
            return _gaussian_shape(order, rank, extent, length, lines)
        found = self._nearest(order, rank, extent)
        if found is not None:
            return found
        whole: Extent = "line" if isinstance(extent, int) and extent > 0 else "tensor"
        known = self._nearest(order, rank, whole)
        assert known is not None, "measured operands know the shapes under one scale per line and per tensor"
        ratio = (
            _gaussian_shape(order, rank, extent, length, lines).peak
            / _gaussian_shape(order, rank, whole, length, lines).peak
        )
        return Shape(max(known.peak * ratio, 1.0), known.flatness)

    def _nearest(self, order: int, rank: int, extent: Extent) -> Shape | None:
        if (order, rank, extent) in self._table:
            return self._table[order, rank, extent]
        if rank < order:
            alike = max(round(RANK_ORDER * rank / order), RANKS[0])
            return self._table.get((RANK_ORDER, alike, extent))
        known = [o for o, r, e in self._table if o == r and e == extent and (o == 1) == (order == 1)]
        nearest = min(known, key=lambda o: abs(np.log2(o / order)), default=None)
        return None if nearest is None else self._table[nearest, nearest, extent]

    def kept_energy(self, rank: int, order: int) -> float:
        """Share of the energy that a rank cut keeps; rank / order where it was not measured."""
        return _on_curve(self.kept, rank, order, rank / order)

    def to_json(self) -> dict[str, Any]:
        return {
            "rms": self.rms,
            "maximum": self.maximum,
            "nonnegative": self.nonnegative,
            "spread": self.spread,
            "shapes": [[*key, shape.peak, shape.flatness] for key, shape in self.shapes],
            "kept": list(self.kept),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        shapes = tuple(
            ((int(order), int(rank), extent), Shape(float(peak), float(flatness)))
            for order, rank, extent, peak, flatness in data["shapes"]
        )
        own = (float(data["rms"]), float(data["maximum"]), bool(data["nonnegative"]), float(data["spread"]))
        return cls(*own, shapes, tuple(map(float, data["kept"])))


@dataclass(frozen=True)
class Statistics:
    """Both operands of a product, and how they meet.

    Attributes:
        left, right: the operands.
        coherence: ‖out‖² K / (‖left‖² ‖right‖²): 1 for independent operands, more where their lines point the same way.
        dropped: rank of ``RANKS`` -> ‖out − out of the low sequencies‖² / ‖out‖².
    """

    left: Operand = Operand()
    right: Operand = Operand()
    coherence: float = 1.0
    dropped: tuple[float, ...] = ()

    def dropped_energy(self, rank: int, order: int) -> float:
        """Square of the relative error of a rank cut alone; 1 − rank / order where it was not measured."""
        return _on_curve(self.dropped, rank, order, 1 - rank / order)

    def sides(self, gemm: Gemm) -> tuple[Operand, Operand]:
        """(the operand that the gradient comes in, the other one); in a forward (left, right)."""
        return (self.right, self.left) if gemm.gradient == "right" else (self.left, self.right)

    def to_json(self) -> dict[str, Any]:
        return {
            "left": self.left.to_json(),
            "right": self.right.to_json(),
            "coherence": self.coherence,
            "dropped": list(self.dropped),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        left, right = Operand.from_json(data["left"]), Operand.from_json(data["right"])
        return cls(left, right, float(data["coherence"]), tuple(map(float, data["dropped"])))


def _on_curve(curve: tuple[float, ...], rank: int, order: int, otherwise: float) -> float:
    """A value measured over ranks of ``RANK_ORDER``; of other orders, at the same share of the sequencies."""
    if not curve or rank == order:
        return otherwise
    return float(np.interp(RANK_ORDER * rank / order, RANKS, curve))


def distinct(length: int, order: int) -> tuple[int, int]:
    """(values of a transformed line that differ, times that those of its last block are repeated).

    A block of which only r values are not padding is transformed to the values of a transform of the next power of
    two above r, each repeated.
    """
    rest = length % order
    if not rest:
        return length, 1
    smaller = 1 << (rest - 1).bit_length()
    return length - rest + smaller, order // smaller


def shared_values(extent: Extent, order: int, rank: int, length: int, lines: int) -> int:
    """How many different values have one scale, at least 1."""
    line = max(distinct(length, order)[0] * rank // order, 1)
    if extent in ("line", "tensor"):
        return line * (lines if extent == "tensor" else 1)
    assert isinstance(extent, int)
    return max(min(abs(extent) * rank // order, line), 1) * (lines if extent < 0 else 1)


def _gaussian_shape(order: int, rank: int, extent: Extent, length: int, lines: int) -> Shape:
    """Of independent Gaussian values. The mean square counts padding, which takes its share of a block's energy."""
    blocks = -(-length // order)
    emptier = 1.0 if length < order else (blocks * order / length) ** 0.5
    return Shape(max(expected_peak(shared_values(extent, order, rank, length, lines)) * emptier, 1.0))


@functools.lru_cache(maxsize=4096)
def expected_peak(values: int) -> float:
    """√E[max²] of that many independent Gaussian magnitudes, in units of their root mean square.

    The mean over the distribution function F(x) = erf(x/√2)ⁿ, by midpoints of equal probability.
    """
    probability = (np.arange(512) + 0.5) / 512
    tail = -np.expm1(np.log(probability) / values)
    return float(np.sqrt(np.mean(special.ndtri(tail / 2) ** 2)))
