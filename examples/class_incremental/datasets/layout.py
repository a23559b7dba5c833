"""Checks of files that somebody else unpacked: every refusal names the file, what is wrong with it, and the cure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .dataset import DatasetError

__all__ = ["check_digest", "check_labels", "folder", "table"]

AGAIN = "the file is damaged or of another release: unpack the original archive again"


def folder(root: Path, inner: Sequence[str], names: Sequence[str]) -> Path:
    """``root``, or one of the archive's folders ``inner`` below it: the one that holds all ``names``.

    Raises:
        DatasetError: neither does; the message names the first missing file of the better one.
    """
    places = [place for place in (root, *(root / name for name in inner)) if place.is_dir()]
    missing = {place: [name for name in names if not (place / name).exists()] for place in places}
    best = min(places, key=lambda place: len(missing[place]))
    if missing[best]:
        raise DatasetError(
            f"{best} has no {missing[best][0]!r} ({len(missing[best])} of {len(names)} names are missing); name the "
            f"folder that the archive was unpacked to, or its folder {inner[-1]!r}"
        )
    return best


def table(
    path: Path, columns: int, rows: int | None = None, delimiter: str | None = None, use: Sequence[int] | None = None
) -> NDArray[np.float64]:
    """A text file of numbers, [rows, columns], or only the columns ``use``.

    Args:
        columns: that the file must have.
        rows: that it must have; None: any number but 0.

    Raises:
        DatasetError: it has other numbers of them, or holds something else than numbers.
    """
    try:
        with path.open(encoding="ascii") as file:
            first = file.readline().strip()
        found = len(first.split(delimiter)) if first else 0
        if found != columns:
            raise DatasetError(f"{path} has {found} columns, not {columns}; {AGAIN}")
        values: NDArray[np.float64] = np.loadtxt(path, delimiter=delimiter, ndmin=2, usecols=use)
    except (ValueError, OSError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path} is no table of numbers: {error}; {AGAIN}") from error
    if rows is not None and len(values) != rows:
        raise DatasetError(f"{path} has {len(values)} rows, not {rows}; {AGAIN}")
    return values


def check_labels(values: NDArray[np.float64], known: Sequence[int], path: Path) -> NDArray[np.int64]:
    """The labels as whole numbers.

    Raises:
        DatasetError: one of them is none of ``known``.
    """
    strange = set(np.unique(values).tolist()) - set(map(float, known))
    if strange:
        raise DatasetError(f"{path} has the label {min(strange):g}, which is none of {known[0]}..{known[-1]}; {AGAIN}")
    return values.astype(np.int64)


def check_digest(path: Path, md5: str) -> bytes:
    """The content of a file whose MD5 digest is known.

    Raises:
        DatasetError: it has another one.
    """
    content = path.read_bytes()
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DatasetError(f"{path} has the MD5 digest {found}, not the published {md5}; {AGAIN}")
    return content
