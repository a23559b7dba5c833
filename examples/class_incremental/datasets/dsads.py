"""DSADS, Daily and Sports Activities (Altun, Barshan & Tunçel 2010): 19 activities, 8 people, 5 sensor units.

data/a01..a19/p1..p8/s01..s60.txt       5 seconds at 25 Hz each: 125 lines of 45 numbers with commas between
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data import Split, chronological, normalized
from ..settings import Settings
from .dataset import Dataset, register
from .layout import folder, table
from .windows import FEATURES, features

__all__ = ["DSADS", "PUBLISHED", "Published", "read"]

SAMPLES, CHANNELS = 125, 45


@dataclass(frozen=True)
class Published:
    """How many folders and files there are."""

    activities: int = 19
    people: int = 8
    segments: int = 60

    def names(self) -> list[str]:
        """Of all files, relative to ``data``."""
        return [
            f"a{activity:02}/p{person}/s{segment:02}.txt"
            for activity in range(1, self.activities + 1)
            for person in range(1, self.people + 1)
            for segment in range(1, self.segments + 1)
        ]


PUBLISHED = Published()


def read(root: Path, published: Published = PUBLISHED) -> tuple[Split, Split]:
    """Features [N, 405], normalised; the test is the last fifth of everybody's segments of every activity.

    Raises:
        DatasetError: a file is missing or is no table of 125 × 45 numbers.
    """
    names = published.names()
    place = folder(root, ("data",), names)

    def recordings() -> Iterator[tuple[Tensor, int]]:
        for start in range(0, len(names), published.segments):
            own = names[start : start + published.segments]
            segments = np.stack([table(place / name, CHANNELS, SAMPLES, ",") for name in own])
            yield features(torch.tensor(segments, dtype=torch.float32)), int(own[0][1:3]) - 1

    train, test = chronological(recordings())
    return normalized(train.shuffled(), test)


DSADS = register(
    Dataset(
        name="dsads",
        classes=19,
        each=2,
        shape=(FEATURES * CHANNELS,),
        model="three_layers",
        settings=Settings(),
        read=read,
        origin="the archive of https://archive.ics.uci.edu/dataset/256, unpacked",
    )
)
