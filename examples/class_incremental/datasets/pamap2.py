"""PAMAP2, Physical Activity Monitoring (Reiss & Stricker 2012): 12 activities, 9 people, 3 inertial units at 100 Hz.

    Protocol/subject101.dat .. subject109.dat       54 numbers a line: time, activity, heart rate, 3 × 17 of a unit

Of every unit the acceleration (±16 g), the angular rate and the magnetic field are used; lines of no activity (0) are
left out, values that are missing lie between their neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ..data import Split, chronological, normalized
from ..settings import Settings
from .dataset import Dataset, DatasetError, register
from .layout import AGAIN, check_labels, folder, table
from .windows import FEATURES, features, filled, windows

__all__ = ["PAMAP2", "PUBLISHED", "Published", "read"]

COLUMNS = 54
ACTIVITIES = (1, 2, 3, 4, 5, 6, 7, 12, 13, 16, 17, 24)
"""Of the protocol, as numbered in the files; 0 is none of them."""

CHANNELS = tuple(3 + 17 * unit + column for unit in range(3) for column in (1, 2, 3, 7, 8, 9, 10, 11, 12))
"""Columns, counted from 0; a unit has temperature, acceleration twice, angular rate, magnetic field, orientation."""


@dataclass(frozen=True)
class Published:
    """How many lines all files have together, and how long a window is, in samples."""

    lines: int = 2872533
    samples: int = 512


PUBLISHED = Published()


def read(root: Path, published: Published = PUBLISHED) -> tuple[Split, Split]:
    """Features [N, 243] of windows of 5.12 s, normalised; the test is the last fifth of everybody's windows.

    Raises:
        DatasetError: a file is missing, is no table of 54 columns, names another activity, lacks a whole channel, or
            all have another number of lines.
    """
    names = [f"subject{number}.dat" for number in range(101, 110)]
    place = folder(root, ("Protocol", "PAMAP2_Dataset/Protocol"), names)
    lines = 0

    def recordings() -> Iterator[tuple[Tensor, int]]:
        nonlocal lines
        for name in names:
            values = table(place / name, COLUMNS, use=(1, *CHANNELS))
            lines += len(values)
            labels = check_labels(values[:, 0], (0, *ACTIVITIES), place / name)
            signals = filled(values[:, 1:])
            if np.isnan(signals).any():
                channel = CHANNELS[int(np.flatnonzero(np.isnan(signals).any(0))[0])]
                raise DatasetError(f"{place / name} has no value at all in column {channel + 1}; {AGAIN}")
            for label, found in sorted(windows(signals, labels, published.samples).items()):
                if label:
                    yield features(found), ACTIVITIES.index(label)

    train, test = chronological(recordings())
    if lines != published.lines:
        raise DatasetError(f"the nine files of {place} have {lines} lines, not {published.lines}; {AGAIN}")
    return normalized(train.shuffled(), test)


PAMAP2 = register(
    Dataset(
        name="pamap2",
        classes=len(ACTIVITIES),
        each=2,
        shape=(FEATURES * len(CHANNELS),),
        model="three_layers",
        settings=Settings(),
        read=read,
        origin="the archive of https://archive.ics.uci.edu/dataset/231, unpacked",
    )
)
