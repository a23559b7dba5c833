"""Handwritten digits, 8 × 8, which come with scikit-learn: 1437 for training, 360 for the test, always the same."""

from __future__ import annotations

from pathlib import Path

import torch
from sklearn.datasets import load_digits

from ..data import Split
from ..settings import Settings
from .dataset import Dataset, register

__all__ = ["DIGITS", "read"]


def read(root: Path) -> tuple[Split, Split]:
    """Images [N, 1, 8, 8] in 0..1; ``root`` is not looked at."""
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    whole = Split(x, torch.tensor(data.target)).shuffled()
    return Split(whole.x[:1437], whole.y[:1437]), Split(whole.x[1437:], whole.y[1437:])


DIGITS = register(Dataset("digits", 10, 2, (1, 8, 8), "three_layers", Settings(), read))
