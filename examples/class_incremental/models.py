"""Models with ``features``: the fully connected net of three layers that HDQT's activity recognition uses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ThreeLayers"]


class ThreeLayers(nn.Module):
    """Inputs [B, inputs] to scores [B, classes]."""

    def __init__(self, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, width), nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def features(self, x: Tensor) -> Tensor:
        """[B, width], what the head reads."""
        return torch.relu(self.second(torch.relu(self.first(x))))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.features(x))
        return scores
