"""Read the JSON of ``training_step.py``: for every model, precision and device the newest run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Entry", "Run", "front", "read_runs"]


@dataclass(frozen=True)
class Entry:
    """A contender in a run; None for what was not measured.

    Attributes:
        milliseconds: median of a step.
        speed: relative to Inductor's in the same run.
        gibibytes: peak memory; None on CPUs, where it is not measured.
        first_step: seconds of the first step, most of it compilation.
        reason: why it did not run.
    """

    contender: str
    milliseconds: float | None = None
    speed: float | None = None
    gibibytes: float | None = None
    first_step: float | None = None
    reason: str = ""

    @property
    def place(self) -> tuple[float, float] | None:
        """(milliseconds, GiB) where both were measured."""
        if self.milliseconds is None or self.gibibytes is None:
            return None
        return self.milliseconds, self.gibibytes


@dataclass(frozen=True)
class Run:
    """One run of ``training_step.py``."""

    model: str
    description: str
    precision: str
    device: str
    date: str
    versions: dict[str, str]
    commit: str
    command: str
    file: str
    entries: tuple[Entry, ...]

    @classmethod
    def from_json(cls, data: dict[str, Any], file: str) -> Run:
        """Older files have no description of the model, and no reasons."""
        rows = data["rows"]
        base = next((row["step, ms"] for row in rows if row["contender"] == "inductor"), None)
        kept = ("model", "precision", "device", "date", "versions", "commit", "command")
        return cls(
            **{name: data[name] for name in kept},
            description=data.get("description", data["model"]),
            file=file,
            entries=tuple(_entry(row, base) for row in rows),
        )


def _entry(row: dict[str, Any], base: float | None) -> Entry:
    time = row["step, ms"]
    return Entry(
        contender=row["contender"],
        milliseconds=time,
        speed=base / time if base and time else None,
        gibibytes=row["peak, GiB"] or None,
        first_step=row["first step, s"],
        reason=row.get("did not run", ""),
    )


def read_runs(folder: Path, order: Sequence[str]) -> list[Run]:
    """The newest run of every model, precision and device; those of small sizes or without any figure do not count.

    Args:
        order: of the models; others follow by name.
    """
    newest: dict[tuple[str, str, str], tuple[tuple[str, str], Run]] = {}
    for path in sorted(folder.glob("training_step-*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["quick"] or all(row["step, ms"] is None for row in data["rows"]):
            continue
        run = Run.from_json(data, path.name)
        key, age = (run.model, run.precision, run.device), (data.get("time", run.date), path.name)
        if key not in newest or newest[key][0] < age:
            newest[key] = (age, run)
    runs = [run for _, run in newest.values()]
    places = {model: place for place, model in enumerate(order)}
    return sorted(runs, key=lambda run: (places.get(run.model, len(places)), run.model, run.device, run.precision))


def front(entries: Sequence[Entry]) -> list[Entry]:
    """The Pareto front of time and memory, by time: those that no other beats in one without losing in the other."""
    placed = [(entry.place, entry) for entry in entries if entry.place is not None]
    kept = [
        (place, entry)
        for place, entry in placed
        if not any(all(a <= b for a, b in zip(other, place, strict=True)) and other != place for other, _ in placed)
    ]
    return [entry for _, entry in sorted(kept, key=lambda pair: pair[0])]
