"""Tasks: scikit-learn's digits (shipped with that package), two classes after two classes, always the same split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor

__all__ = ["Split", "digits", "tasks"]


@dataclass(frozen=True)
class Split:
    """Examples [N, …] in float32 and labels [N] in int64."""

    x: Tensor
    y: Tensor

    def of(self, classes: range) -> Split:
        """The examples of some classes."""
        chosen = (self.y >= classes.start) & (self.y < classes.stop)
        return Split(self.x[chosen], self.y[chosen])

    def __add__(self, other: Split) -> Split:
        return Split(torch.cat([self.x, other.x]), torch.cat([self.y, other.y]))


def digits() -> tuple[Split, Split]:
    """Training examples [1437, 64] in 0..1 and test examples [360, 64]."""
    data = load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return Split(x[order[:1437]], y[order[:1437]]), Split(x[order[1437:]], y[order[1437:]])


def tasks(classes: int, each: int) -> list[range]:
    """The classes of each task."""
    return [range(start, min(start + each, classes)) for start in range(0, classes, each)]
