"""Which examples are kept: those whose mean stays nearest to that of their class (iCaRL, arXiv 1611.07725)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .data import Split

__all__ = ["herd", "herding"]


def herding(features: Tensor, count: int) -> list[int]:
    """Examples whose mean stays nearest to the mean of all, in order (iCaRL, algorithm 4).

    Args:
        features: [N, width].
        count: how many; at most N are found.
    """
    normal = F.normalize(features, dim=1)
    mean, total = normal.mean(0), torch.zeros_like(normal[0])
    left, chosen = torch.ones(len(features), dtype=torch.bool, device=features.device), list[int]()
    for number in range(1, min(count, len(features)) + 1):
        distance = (mean - (total + normal) / number).norm(dim=1).masked_fill(~left, float("inf"))
        best = int(distance.argmin())
        chosen.append(best)
        left[best] = False
        total = total + normal[best]
    return chosen


def herd(pool: Split, classes: int, memory: int, features: Callable[[Tensor], Tensor]) -> Split:
    """At most ``memory`` of the examples, as many of each class.

    Args:
        classes: how many there are so far, the first of the dataset.
        features: of inputs.
    """
    parts = []
    for label in range(classes):
        own = pool.of(range(label, label + 1))
        index = herding(features(own.x), memory // classes)
        parts.append(Split(own.x[index], own.y[index]))
    kept = parts[0]
    for part in parts[1:]:
        kept = kept + part
    return kept
