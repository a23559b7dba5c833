"""Running sums over the batches, of which an operand's statistics are made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from hadamard_fx.cost_model.statistics import RANK_ORDER, RANKS, Extent, Operand, Shape
from hadamard_fx.kernels.quantize_clipped import sylvester_transform
from hadamard_fx.kernels.walsh import block_transform

__all__ = ["OperandSums"]

_LARGEST_MATRIX = 128
"""Orders up to this are transformed by a product with the matrix, in the order of sequency; others by additions."""


class OperandSums:
    """Of one operand, which comes as lines [lines, K] along the contracted axis."""

    def __init__(self) -> None:
        self._energy = 0.0
        self._count = 0
        self._maximum = 0.0
        self._nonnegative = True
        self._lines = torch.zeros(3, dtype=torch.float64)  # count, Σ ln rms, Σ (ln rms)²
        self._shapes: dict[tuple[int, int, Extent], Tensor] = defaultdict(lambda: torch.zeros(3, dtype=torch.float64))
        self._kept = torch.zeros(RANK_ORDER, dtype=torch.float64)

    def add(self, lines: Tensor, orders: Iterable[int], groups: Iterable[int], *, ranked: bool) -> float:
        """Look at one batch; returns the operand's energy.

        Args:
            lines: float32 [lines, K].
            orders: of the transforms.
            groups: numbers of neighbours that share a scale, beside whole lines and the tensor.
            ranked: look at every rank of ``RANK_ORDER``, too.
        """
        energies = lines.double().square().sum(1).cpu()
        energy = float(energies.sum())
        self._energy += energy
        self._count += lines.numel()
        self._maximum = max(self._maximum, float(lines.abs().max()))
        self._nonnegative = self._nonnegative and float(lines.min()) >= 0
        logs = (energies[energies > 0] / lines.shape[1]).log() / 2
        self._lines += torch.stack([torch.tensor(float(len(logs))).double(), logs.sum(), logs.square().sum()])
        for order in sorted(set(orders)):
            ranks = range(1, order + 1) if ranked and order == RANK_ORDER else (order,)
            self._transformed(lines, order, ranks, tuple(groups))
        return energy

    def _transformed(self, lines: Tensor, order: int, ranks: Iterable[int], groups: tuple[int, ...]) -> None:
        if order > _LARGEST_MATRIX:
            v = sylvester_transform(lines, order)
        else:
            v = block_transform(lines, order, order) if order > 1 else lines
        magnitude = (v.abs() / order**0.5).view(len(lines), -1, order)
        by_sequency = magnitude.double().square().sum((0, 1)).cpu()
        if len(tuple(ranks)) > 1:
            self._kept += by_sequency
        energy = by_sequency.cumsum(0)
        extents: list[tuple[Extent, int]] = [("line", magnitude.shape[1])]
        extents += [(group, group // order) for group in groups if group % order == 0]
        for extent, blocks in extents:
            largest, total, counts = _per_scale(magnitude, blocks)
            self._count_shape(order, ranks, extent, largest, total, counts, energy)
            wider: Extent = "tensor" if extent == "line" else -int(extent)
            whole = largest.amax(0, keepdim=True), total.sum(0, keepdim=True), counts * len(lines)
            self._count_shape(order, ranks, wider, *whole, energy)

    def _count_shape(
        self,
        order: int,
        ranks: Iterable[int],
        extent: Extent,
        largest: Tensor,
        total: Tensor,
        counts: Tensor,
        energy: Tensor,
    ) -> None:
        """Add Σ n·max², Σ max·|v| and Σ v² over the scales, for each rank.

        Args:
            largest, total: [lines, scales of a line, order], up to each sequency.
            counts: [scales of a line], blocks under each.
            energy: [order], up to each sequency.
        """
        squares = (largest.square() * counts[:, None]).sum((0, 1)).cpu()
        products = (largest * total).sum((0, 1)).cpu()
        for rank in ranks:
            at = rank - 1
            self._shapes[order, rank, extent] += torch.stack([squares[at] * rank, products[at], energy[at]])

    def operand(self) -> Operand:
        """The statistics of all batches so far."""
        count, mean, square = (float(value) for value in self._lines)
        spread = max(square / count - (mean / count) ** 2, 0.0) ** 0.5 if count else 0.0
        shapes = tuple(
            (key, Shape(max(_rounded((top / energy) ** 0.5), 1.0), _rounded(cross / (top * energy) ** 0.5)))
            for key, (top, cross, energy) in ((k, map(float, sums)) for k, sums in self._shapes.items())
            if energy > 0
        )
        whole = float(self._kept.sum())
        kept = self._kept.cumsum(0) / whole if whole else self._kept[:0]
        return Operand(
            rms=_rounded((self._energy / max(self._count, 1)) ** 0.5),
            maximum=_rounded(self._maximum),
            nonnegative=self._nonnegative,
            spread=_rounded(spread),
            shapes=shapes,
            kept=tuple(_rounded(float(kept[rank - 1])) for rank in RANKS) if whole else (),
        )


def _rounded(value: float) -> float:
    """Six digits: a file of thousands of figures stays small, and none is known better."""
    return float(f"{value:.6g}")


def _per_scale(magnitude: Tensor, blocks: int) -> tuple[Tensor, Tensor, Tensor]:
    """(largest, total, blocks under each) of the scales that hold for ``blocks`` blocks, up to each sequency.

    Args:
        magnitude: [lines, blocks of a line, order].

    Returns:
        float64 [lines, scales, order] twice, and float64 [scales].
    """
    parts = magnitude.split(blocks, 1)
    largest = torch.stack([part.amax(1) for part in parts], 1).cummax(2)[0].double()
    total = torch.stack([part.sum(1, dtype=torch.float64) for part in parts], 1).cumsum(2)
    counts = torch.tensor([part.shape[1] for part in parts], dtype=torch.float64, device=magnitude.device)
    return largest, total, counts
