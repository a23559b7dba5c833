"""A report as a file of the user's choice; the ending says which view of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..errors import ReportError
from ..files import write_whole

__all__ = ["save_as"]


def save_as(path: str | Path, **views: Callable[[], str]) -> Path:
    """Write the view that the ending of ``path`` names.

    Args:
        views: ending without the dot -> what makes the text.

    Raises:
        ReportError: another ending, or the file cannot be written; what was there before stays.
    """
    path = Path(path)
    make = views.get(path.suffix.removeprefix(".").lower())
    if make is None:
        known = " or ".join(f".{ending}" for ending in views)
        raise ReportError(f"{path}: a report is saved as {known}; give the file one of these endings")
    text = make()
    try:
        write_whole(path, text)
        path.chmod(0o666 & ~_umask())  # it was written as a temporary file, which others may not read
    except OSError as error:
        raise ReportError(f"{path}: the report cannot be written: {error.strerror or error}") from None
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
