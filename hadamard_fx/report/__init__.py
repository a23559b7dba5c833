"""Views of a plan: text, JSON, and the store that lets a cache hit show the report of the first compilation."""

from __future__ import annotations

from .report import Report
from .store import load, save

__all__ = ["Report", "load", "save"]
