"""A small model for the tests of calibration, and its batches."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hadamard_fx import Calibration
from hadamard_fx.plan import Role


class Net(nn.Module):
    """Two layers, one of them used twice, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(32, 32)
        self.frozen = nn.Linear(32, 32).requires_grad_(False)
        self.norm = nn.BatchNorm1d(32)
        self.head = nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.inner(F.relu(self.inner(x))))
        return self.head(F.dropout(self.norm(self.frozen(x)), 0.1))


def square(model: Any, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean()


def batches(count: int = 2, tokens: int = 64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(tokens, 32, generator=generator) for _ in range(count)]


def by_key(calibration: Calibration) -> dict[tuple[str, Role], Any]:
    return {(product.layer, product.role): product for product in calibration.products}
