"""sMNIST and pMNIST: handwritten digits as 784 steps of one pixel, in order or in one fixed random order.

The files are the four of the original distribution, with or without ``.gz``; nothing is downloaded. An idx file begins
with a magic number (its type and its number of axes) and the sizes of the axes, big-endian, four bytes each.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["DataError", "mnist", "read_idx"]

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
UNSIGNED_BYTES = 0x08
PERMUTATION_SEED = 92916


class DataError(ValueError):
    """A data set is not where it was said to be, or is not what it should be."""


def read_idx(path: Path) -> Tensor:
    """The uint8 array of an idx file, in its shape.

    Args:
        path: with ``.gz`` behind it where the file is compressed.

    Raises:
        DataError: no such file, another type, or fewer or more bytes than the sizes say.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != UNSIGNED_BYTES:
        raise DataError(
            f"{path} is no idx file of bytes: it begins with {data[:4].hex(' ') or 'nothing'}, not 00 00 08"
        )
    axes = data[3]
    if len(data) < 4 + 4 * axes:
        raise DataError(f"{path} ends within its header; copy it again")
    shape = struct.unpack(f">{axes}I", data[4 : 4 + 4 * axes])
    content = torch.frombuffer(bytearray(data[4 + 4 * axes :]) or bytearray(1), dtype=torch.uint8)
    expected = int(torch.tensor(shape).prod())
    if len(data) - 4 - 4 * axes != expected:
        found = len(data) - 4 - 4 * axes
        raise DataError(f"{path} holds {found} bytes where its header {shape} says {expected}; copy it again")
    return content[:expected].reshape(shape)


def mnist(folder: str | Path, permuted: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training sequences [N, 784, 1] in 0..1 (float32), labels [N] (int64), test sequences and labels.

    Args:
        folder: where the four files are.
        permuted: the pixels in one random order, the same for all images and in every process.

    Raises:
        DataError: a file is missing or broken, or images and labels do not belong together.
    """
    found: list[Tensor] = []
    for images_name, labels_name in FILES.values():
        images, labels = (read_idx(_file(Path(folder), name)) for name in (images_name, labels_name))
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            shapes = f"{tuple(images.shape)} and {tuple(labels.shape)}"
            raise DataError(
                f"{folder}: {images_name} and {labels_name} do not belong together, their shapes are {shapes}"
            )
        if labels.numel() and labels.max() > 9:
            raise DataError(f"{folder}: {labels_name} has the label {int(labels.max())}, above 9")
        found += [images.flatten(1).unsqueeze(2).float() / 255, labels.long()]
    if found[0].shape[1:] != found[2].shape[1:]:
        raise DataError(
            f"{folder}: images of {found[0].shape[1]} pixels for training, of {found[2].shape[1]} for the test"
        )
    if permuted:
        order = torch.randperm(found[0].shape[1], generator=torch.Generator().manual_seed(PERMUTATION_SEED))
        found[0], found[2] = found[0][:, order], found[2][:, order]
    return found[0], found[1], found[2], found[3]


def _file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    listed = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) if folder.is_dir() else "no such folder"
    raise DataError(
        f"{folder} has no {name} or {name}.gz ({listed or 'it is empty'}); give the folder of the four MNIST files "
        f"{', '.join(name for names in FILES.values() for name in names)}"
    )
