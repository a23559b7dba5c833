"""Examples with labels, and what is done to them before training."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Split", "chronological", "normalized"]


@dataclass(frozen=True)
class Split:
    """Examples [N, …] in float32 and labels [N] in int64."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def of(self, classes: range) -> Split:
        """The examples of some classes."""
        chosen = (self.y >= classes.start) & (self.y < classes.stop)
        return Split(self.x[chosen], self.y[chosen])

    def to(self, device: str) -> Split:
        return Split(self.x.to(device), self.y.to(device))

    def shuffled(self, seed: int = 0) -> Split:
        """Always in the same order for a seed, so that the end of a split is as good as its beginning."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return Split(self.x[order], self.y[order])

    def __add__(self, other: Split) -> Split:
        return Split(torch.cat([self.x, other.x]), torch.cat([self.y, other.y]))


def normalized(train: Split, test: Split, dims: tuple[int, ...] = (0,)) -> tuple[Split, Split]:
    """Mean 0 and standard deviation 1 on the training examples, over ``dims``; what never changes becomes 0."""
    mean, deviation = train.x.mean(dims, keepdim=True), train.x.std(dims, keepdim=True)
    deviation = torch.where(deviation == 0, 1.0, deviation)
    return Split((train.x - mean) / deviation, train.y), Split((test.x - mean) / deviation, test.y)


def chronological(recordings: Iterable[tuple[Tensor, int]], share: float = 0.2) -> tuple[Split, Split]:
    """Training and test examples: of each recording the last ``share``, rounded down, is for the test.

    Args:
        recordings: examples [N, …] in the order of time, and their label. Neighbours in time are much alike, so that a
            random choice would test on what was trained on.
    """
    parts: tuple[list[Split], list[Split]] = ([], [])
    for x, label in recordings:
        cut = len(x) - int(share * len(x))
        for part, own in zip(parts, (x[:cut], x[cut:]), strict=True):
            part.append(Split(own, torch.full((len(own),), label)))
    train, test = (Split(torch.cat([s.x for s in part]), torch.cat([s.y for s in part])) for part in parts)
    return train, test
