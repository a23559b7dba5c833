"""Reports on disk: a compilation that comes from a cache runs no pass, so its report must have been kept."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from ..errors import ReportError
from ..files import write_whole
from .report import Report

__all__ = ["load", "save"]

_log = logging.getLogger(__name__)


def _path(directory: str | Path, key: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", key):
        raise ReportError(f"a report's key may hold letters, digits, - and _, not {key!r}")
    return Path(directory) / f"{key}.json"


def save(directory: str | Path, key: str, report: Report) -> Path | None:
    """Keep ``report`` under ``key``; readers never see half of it. None where the directory cannot be written."""
    path = _path(directory, key)
    try:
        write_whole(path, report.to_json())
    except OSError as error:
        # A full or read-only disk costs the report of later cache hits, not the compilation.
        _log.warning("cannot keep the report in %s: %s", path.parent, error)
        return None
    return path


def load(directory: str | Path, key: str) -> Report | None:
    """The report under ``key``; None where there is none, or where the file is damaged or of another release."""
    path = _path(directory, key)
    try:
        return Report.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, ReportError) as error:
        _log.warning("ignoring the report %s: %s", path, error)
        return None
