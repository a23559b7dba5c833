"""Horizontal bars: the speed of every contender relative to Inductor, model by model, on one device."""

from __future__ import annotations

from collections.abc import Sequence

from _results import Entry, Run
from _svg import Drawing, Scale, family, text_width

__all__ = ["bars"]

LEFT_MARGIN, PLOT, RIGHT = 20, 560, 70
TOP, ROW, BAR, GAP, BOTTOM = 84, 20, 13, 16, 48
"""Heights: above the first model, of a row, of its bar, between models, below the last."""


def heading(run: Run) -> str:
    """A model's name in the picture."""
    return f"{run.description} · {run.precision}"


def bars(runs: Sequence[Run]) -> str:
    """The picture of the runs of one device; where a contender did not run, that stands in the place of its bar."""
    entries = [entry for run in runs for entry in run.entries]
    left = LEFT_MARGIN + max(text_width(entry.contender) for entry in entries) + 10
    across = Scale(0, max(1.0, *(entry.speed or 0.0 for entry in entries)), left, left + PLOT)
    height = TOP + sum((len(run.entries) + 1) * ROW + GAP for run in runs) + BOTTOM - GAP
    drawing = Drawing()
    drawing.text(f"Speed of a training step relative to Inductor, {runs[0].device}", LEFT_MARGIN, 30, "title")
    _axis(drawing, across, TOP - 8, height - BOTTOM)
    y = float(TOP)
    for run in runs:
        drawing.text(heading(run), left + 4, y + 14, "head halo")
        for place, entry in enumerate(run.entries, start=1):
            _bar(drawing, entry, across, y + place * ROW)
        y += (len(run.entries) + 1) * ROW + GAP
    title = f"Speed relative to Inductor on {runs[0].device}"
    return drawing.render(left + PLOT + RIGHT, height, title, ". ".join(map(_in_words, runs)))


def _axis(drawing: Drawing, across: Scale, top: float, bottom: float) -> None:
    for tick in across.ticks:
        x = across(tick)
        drawing.line("axis" if tick in (0, 1) else "grid", x, top, x, bottom)
        for y in (top - 6, bottom + 16):
            drawing.text(f"{tick:g}×", x, y, "middle quiet")
    if 1 not in across.ticks:
        drawing.line("axis", across(1), top, across(1), bottom)
    drawing.text("slower ← 1× is Inductor → faster", across(1), top - 24, "middle quiet")
    drawing.text("speed relative to Inductor in the same run", (across.start + across.stop) / 2, bottom + 34, "middle")


def _bar(drawing: Drawing, entry: Entry, across: Scale, y: float) -> None:
    drawing.text(entry.contender, across.start - 8, y + 14, "end")
    if entry.speed is None:
        drawing.text("did not run" if entry.reason else "not compared", across.start + 5, y + 14, "quiet halo")
        return
    drawing.rectangle(family(entry.contender), across.start, y + 3.5, across(entry.speed) - across.start, BAR)
    drawing.text(f"{entry.speed:.2f}×", across(entry.speed) + 5, y + 14, "halo")


def _in_words(run: Run) -> str:
    speeds = [f"{entry.contender} {entry.speed:.2f}" for entry in run.entries if entry.speed is not None]
    return f"{heading(run)}: {', '.join(speeds)}"
