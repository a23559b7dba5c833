"""Test figures in the course of a training: a line for the mean of each contender's seeds, in a band of their extremes.

Contenders that end farther from the first than that one has come in the part that is shown are named below the
picture: they would flatten the rest.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from _svg import Drawing, Scale, text_width

__all__ = ["curves"]

WIDTH, HEIGHT = 760, 440
LEFT, TOP, BOTTOM = 76, 66, 84
LINE = 15
"""Height of a label."""

LEFT_OUT = 0.2
"""Share of the training, its steep beginning, that is not shown."""

COLOURS = (
    ("#59636e", "#9198a1"),
    ("#0969da", "#4493f8"),
    ("#1a7f37", "#3fb950"),
    ("#bc4c00", "#f0883e"),
    ("#8250df", "#ab7df8"),
    ("#bf3989", "#db61a2"),
    ("#9a6700", "#d29922"),
    ("#1b7c83", "#39c5cf"),
    ("#cf222e", "#f85149"),
)
"""Of the lines, on light and on dark pages; the first is the one that the others are compared with."""


def _style() -> str:
    light = "".join(
        f".line{i} {{ stroke: {a}; stroke-width: 2; fill: none; }} .band{i} {{ fill: {a}; fill-opacity: 0.12; }} "
        f".name{i} {{ fill: {a}; }} "
        for i, (a, _) in enumerate(COLOURS)
    )
    dark = "".join(
        f".line{i} {{ stroke: {b}; }} .band{i} {{ fill: {b}; }} .name{i} {{ fill: {b}; }} "
        for i, (_, b) in enumerate(COLOURS)
    )
    return f"{light} @media (prefers-color-scheme: dark) {{ {dark} }}"


@dataclass(frozen=True)
class _Course:
    """One contender: (steps done, mean, smallest, largest) of every test that is shown."""

    name: str
    points: list[tuple[int, float, float, float]]

    @property
    def final(self) -> float:
        return self.points[-1][1]


def curves(data: Mapping[str, Any], title: str) -> str:
    """The picture of one result of ``_from_scratch.py``, as read from its JSON."""
    courses = [_course(name, seeds, data["steps"]) for name, seeds in data["curves"].items()]
    base = courses[0]
    reach = abs(base.points[0][1] - base.final)
    near = [c for c in courses if math.isfinite(c.final) and abs(c.final - base.final) <= max(reach, 1e-9)]
    right = 24 + max(text_width(_label(course)) for course in near)
    values = [value for course in near for point in course.points for value in point[2:]]
    across = Scale(0, data["steps"][-1], LEFT, WIDTH - right)
    up = Scale(*_range(near, values), HEIGHT - BOTTOM, TOP)
    drawing = Drawing()
    drawing.text(title, 20, 28, "title")
    seeds = f"mean of {data['seeds']} seeds, in the band of their extremes; {data['device']}, {data['date']}"
    drawing.text(seeds, 20, 48, "quiet")
    _axes(drawing, across, up, data["figure"])
    for number, course in enumerate(near):
        _draw(drawing, number % len(COLOURS), course, across, up)
    _names(drawing, near, across.stop, up)
    far = [f"{c.name} ({c.final:.4g})" for c in courses if c not in near]
    if far:
        drawing.text(f"Beyond the picture: {', '.join(far)}", LEFT, HEIGHT - 16, "quiet")
    described = "; ".join(f"{course.name} ends at {course.final:.4g}" for course in courses)
    return drawing.render(WIDTH, HEIGHT if far else HEIGHT - 24, title, f"{data['figure']}: {described}.", _style())


def _course(name: str, seeds: Sequence[Sequence[float]], steps: Sequence[int]) -> _Course:
    points = [
        (step, statistics.mean(v), min(v), max(v)) for step, v in zip(steps, zip(*seeds, strict=True), strict=True)
    ]
    shown = [point for point in points if point[0] >= LEFT_OUT * steps[-1]]
    return _Course(name, shown or points[-1:])


def _range(near: Sequence[_Course], values: Sequence[float]) -> tuple[float, float]:
    """Of the vertical axis; a single test per training still leaves it some height."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 1, high + 1)


def _axes(drawing: Drawing, across: Scale, up: Scale, figure: str) -> None:
    for tick in across.ticks:
        if across(tick) <= across.stop + 1:
            drawing.line("grid", across(tick), up.stop, across(tick), up.start)
            drawing.text(f"{tick:g}", across(tick), up.start + 18, "middle quiet")
    for tick in up.ticks:
        drawing.line("grid", across.start, up(tick), across.stop, up(tick))
        drawing.text(f"{tick:g}", across.start - 8, up(tick) + 4, "end quiet")
    drawing.path("axis", [(across.start, up.stop), (across.start, up.start), (across.stop, up.start)])
    drawing.text("training steps", (across.start + across.stop) / 2, up.start + 42, "middle")
    drawing.text(figure, 24, (up.start + up.stop) / 2, "middle", turned=True)


def _draw(drawing: Drawing, number: int, course: _Course, across: Scale, up: Scale) -> None:
    upper = [(across(step), up(most)) for step, _, _, most in course.points]
    lower = [(across(step), up(least)) for step, _, least, _ in course.points]
    drawing.path(f"band{number}", [*upper, *reversed(lower)])
    drawing.path(f"line{number}", [(across(step), up(mean)) for step, mean, _, _ in course.points])


def _label(course: _Course) -> str:
    return f"{course.name} {course.final:.4g}"


def _names(drawing: Drawing, near: Sequence[_Course], right: float, up: Scale) -> None:
    """Beside the ends of the lines, moved apart where they would cover one another."""
    wanted = sorted(range(len(near)), key=lambda number: up(near[number].final))
    places: dict[int, float] = {}
    below = up.stop - LINE
    for number in wanted:
        places[number] = below = max(up(near[number].final) + 4, below + LINE)
    overshoot = max(0.0, below - up.start - 4)
    for rank, number in enumerate(reversed(wanted)):
        ceiling = up.start + 4 - rank * LINE
        places[number] = min(places[number], ceiling) if overshoot else places[number]
    for number, y in places.items():
        drawing.text(_label(near[number]), right + 8, y, f"name{number % len(COLOURS)}")
