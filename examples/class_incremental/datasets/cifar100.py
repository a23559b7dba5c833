"""CIFAR-100 (Krizhevsky 2009) from its Python files: 50000 colour images 32 × 32 of 100 classes, 10000 for the test.

cifar-100-python/train, test, meta      pickles; data uint8 [N, 3072], red plane first, fine_labels [N]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..data import Split, normalized
from ..settings import Settings
from .dataset import Dataset, DatasetError, register
from .layout import check_digest, folder
from .safe_pickle import load

__all__ = ["CIFAR100", "PUBLISHED", "Published", "read"]


@dataclass(frozen=True)
class Published:
    """What the files are known to be: images and MD5 digest of each."""

    train: tuple[int, str] = (50000, "16019d7e3df5f24257cddd939b257f8d")
    test: tuple[int, str] = (10000, "f0ef6b0ae62326f3e7ffdfab6717acfc")
    classes: int = 100


PUBLISHED = Published()


def read(root: Path, published: Published = PUBLISHED) -> tuple[Split, Split]:
    """Images [N, 3, 32, 32], normalised by channel.

    Raises:
        DatasetError: a file is missing, has another digest, or holds something else than images and labels.
    """
    place = folder(root, ("cifar-100-python",), ("train", "test", "meta"))
    train = _split(place / "train", *published.train, published.classes)
    test = _split(place / "test", *published.test, published.classes)
    return normalized(train.shuffled(), test, (0, 2, 3))


def _split(path: Path, count: int, md5: str, classes: int) -> Split:
    held: Any = load(check_digest(path, md5), path)
    data, labels = (held.get(key) if isinstance(held, dict) else None for key in (b"data", b"fine_labels"))
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (count, 3072):
        raise DatasetError(f"{path} has no uint8 data of shape [{count}, 3072]; take cifar-100-python, not cifar-10")
    if not isinstance(labels, list) or np.bincount(labels, minlength=classes).tolist() != [count // classes] * classes:
        raise DatasetError(f"{path} has no {count // classes} fine_labels of each of {classes} classes")
    images = torch.from_numpy(data.reshape(-1, 3, 32, 32)).float() / 255
    return Split(images, torch.tensor(labels))


def crop_and_flip(x: Tensor) -> Tensor:
    """Images [B, 3, 32, 32], each shifted by up to 4 pixels and, every other one, mirrored."""
    shifts = torch.randint(9, (2, len(x), 1), device=x.device)
    place = torch.arange(32, device=x.device)
    rows, columns = (shifts + place).unbind()
    mirrored = torch.rand(len(x), 1, device=x.device) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    image = torch.arange(len(x), device=x.device)[:, None, None]
    moved: Tensor = pad(x, (4, 4, 4, 4)).permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None]]
    return moved.permute(0, 3, 1, 2).contiguous()


CIFAR100 = register(
    Dataset(
        name="cifar100",
        classes=100,
        each=20,
        shape=(3, 32, 32),
        model="resnet32",
        settings=Settings(epochs=170, batch=128, milestones=(60, 100, 140), memory=2000),
        read=read,
        origin="cifar-100-python.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html, unpacked",
        augment=crop_and_flip,
    )
)
