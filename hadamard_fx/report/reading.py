"""Reports from a file: one, as ``Report.save`` writes it, or the list of ``hadamard-fx explain --json``."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import ReportError
from .report import Report

__all__ = ["read_reports"]


def read_reports(path: str | Path) -> tuple[Report, ...]:
    """Every report in a JSON file.

    Raises:
        ReportError: the file cannot be read, or holds something else; the message names it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ReportError(f"{path}: the report cannot be read: {reason}") from None
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ReportError(f"{path}: a report must be JSON: {error}") from None
    try:
        return tuple(Report.from_dict(entry) for entry in (data if isinstance(data, list) else [data]))
    except ReportError as error:
        raise ReportError(f"{path}: {error}") from None
