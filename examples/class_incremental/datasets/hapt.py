"""HAPT, Human Activities and Postural Transitions (Reyes-Ortiz et al. 2016): 12 classes, 30 people, a smartphone.

Train/X_train.txt, y_train.txt, subject_id_train.txt        7767 lines of 561 numbers; 1..12; 1..30
Test/X_test.txt, y_test.txt, subject_id_test.txt            3162 lines, of other people
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..data import Split
from ..settings import Settings
from .dataset import Dataset, DatasetError, register
from .layout import AGAIN, check_labels, folder, table

__all__ = ["HAPT", "PUBLISHED", "Published", "read"]

COLUMNS, CLASSES, PEOPLE = 561, 12, 30


@dataclass(frozen=True)
class Published:
    """How many lines the files of each half have."""

    train: int = 7767
    test: int = 3162


PUBLISHED = Published()


def read(root: Path, published: Published = PUBLISHED) -> tuple[Split, Split]:
    """Features [N, 561] in −1..1 as they are published, and the published division by people.

    Raises:
        DatasetError: a file is missing, has other numbers of lines or columns, or values out of range.
    """
    names = [f"{half}/{kind}_{half.lower()}.txt" for half in ("Train", "Test") for kind in ("X", "y", "subject_id")]
    place = folder(root, ("HAPT Data Set",), names)
    train, test = _half(place, "Train", published.train), _half(place, "Test", published.test)
    return train.shuffled(), test


def _half(place: Path, half: str, lines: int) -> Split:
    def file(kind: str) -> Path:
        return place / half / f"{kind}_{half.lower()}.txt"

    x = table(file("X"), COLUMNS, lines)
    y = check_labels(table(file("y"), 1, lines)[:, 0], range(1, CLASSES + 1), file("y"))
    check_labels(table(file("subject_id"), 1, lines)[:, 0], range(1, PEOPLE + 1), file("subject_id"))
    if not np.abs(x).max() <= 1 + 1e-6:  # also where a value is nan
        raise DatasetError(f"{file('X')} has values outside of −1..1; {AGAIN}")
    return Split(torch.tensor(x, dtype=torch.float32), torch.tensor(y - 1))


HAPT = register(
    Dataset(
        name="hapt",
        classes=CLASSES,
        each=2,
        shape=(COLUMNS,),
        model="three_layers",
        settings=Settings(),
        read=read,
        origin="the archive of https://archive.ics.uci.edu/dataset/341, unpacked",
    )
)
