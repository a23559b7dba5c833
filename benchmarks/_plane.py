"""The plane of step time and peak memory of one model: every contender a point, with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from _labels import RADIUS, Box, Point, labels, leader
from _results import Entry, Run, front
from _svg import Drawing, Scale, family

__all__ = ["FAR", "plane"]

WIDTH, HEIGHT = 720, 450
LEFT, RIGHT, TOP, BOTTOM = 76, 24, 66, 84

FAR = 2.0
"""A contender beyond so many times Inductor's time or memory is named below the picture: it would flatten the rest."""


def plane(run: Run) -> str:
    """The picture of one run; contenders without time and memory have no point."""
    best = front(run.entries)
    near, far = _split(run.entries, best)
    places = [entry.place for entry in near if entry.place is not None]
    across = _scale([time for time, _ in places], LEFT, WIDTH - RIGHT)
    up = _scale([memory for _, memory in places], HEIGHT - BOTTOM, TOP)
    points = [(across(time), up(memory)) for time, memory in places]
    drawing = Drawing()
    drawing.text("Time and memory of a training step", 20, 28, "title")
    drawing.text(f"{run.description}, {run.precision}, {run.device}; the line is the Pareto front", 20, 48, "quiet")
    _axes(drawing, across, up)
    line = _stairs([points[near.index(entry)] for entry in best])
    drawing.path("front", line)
    frame = (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)
    for entry, point, box in zip(near, points, labels([e.contender for e in near], points, line, frame), strict=True):
        _draw_label(drawing, entry, point, box)
    for entry, point in zip(near, points, strict=True):
        drawing.circle(family(entry.contender), *point, RADIUS)
    if far:
        words = ", ".join(f"{e.contender} ({e.milliseconds:.0f} ms, {e.gibibytes:.1f} GiB)" for e in far)
        drawing.text(f"Beyond the picture: {words}", LEFT, HEIGHT - 16, "quiet")
    described = [f"{e.contender} {e.milliseconds:.4g} ms and {e.gibibytes:.4g} GiB" for e in [*near, *far]]
    ahead = f"On the Pareto front: {', '.join(entry.contender for entry in best)}"
    title = f"Step time against peak memory of {run.description} on {run.device}"
    return drawing.render(WIDTH, HEIGHT if far else HEIGHT - 24, title, f"{'; '.join(described)}. {ahead}.")


def _split(entries: Sequence[Entry], best: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """(those that the picture shows, those too far away); the front is always shown."""
    placed = [entry for entry in entries if entry.place is not None]
    base = next((entry.place for entry in placed if entry.contender == "inductor"), None)
    if base is None:
        return placed, []
    time, memory = base

    def is_far(place: Point) -> bool:
        return place[0] > FAR * time or place[1] > FAR * memory

    far = [entry for entry in placed if entry not in best and entry.place is not None and is_far(entry.place)]
    return [entry for entry in placed if entry not in far], far


def _scale(values: Sequence[float], start: float, stop: float) -> Scale:
    """All values with a margin, and at least a tenth of their mean to both sides: noise must not fill the picture."""
    middle = (min(values) + max(values)) / 2
    half = max(0.58 * (max(values) - min(values)), 0.1 * middle)
    return Scale(max(0.0, middle - half), middle + half, start, stop)


def _axes(drawing: Drawing, across: Scale, up: Scale) -> None:
    bottom, top = up.start, up.stop
    for tick in across.ticks:
        drawing.line("grid", across(tick), top, across(tick), bottom)
        drawing.text(f"{tick:g}", across(tick), bottom + 18, "middle quiet")
    for tick in up.ticks:
        drawing.line("grid", across.start, up(tick), across.stop, up(tick))
        drawing.text(f"{tick:g}", across.start - 8, up(tick) + 4, "end quiet")
    drawing.path("axis", [(across.start, top), (across.start, bottom), (across.stop, bottom)])
    drawing.text("step time, ms (less is better)", (across.start + across.stop) / 2, bottom + 42, "middle")
    drawing.text("peak memory, GiB (less is better)", 24, (top + bottom) / 2, "middle", turned=True)


def _stairs(points: Sequence[Point]) -> list[Point]:
    """The front as a line: what lies above it and to the right of it is beaten in both."""
    line = list(points[:1])
    for (_, above), (x, y) in pairwise(points):
        line += [(x, above), (x, y)]
    return line


def _draw_label(drawing: Drawing, entry: Entry, point: Point, box: Box) -> None:
    """The name on the side of its box that is next to the point, with a line to the point if that is far."""
    way = leader(point, box)
    if way:
        drawing.line("leader", *point, *way[-1])
    left, _, right, bottom = box
    x = point[0]
    start, side = (left, "") if left > x else (right, " end") if right < x else ((left + right) / 2, " middle")
    drawing.text(entry.contender, start, bottom - 3, f"halo{side}")
