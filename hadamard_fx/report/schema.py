"""The JSON Schema of a report, which is a file beside this one: ``report.schema.json``."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

__all__ = ["report_schema"]


def report_schema() -> dict[str, Any]:
    """The schema (draft 2020-12) that every report of this release obeys."""
    schema: dict[str, Any] = json.loads(files(__package__).joinpath("report.schema.json").read_text(encoding="utf-8"))
    return schema
