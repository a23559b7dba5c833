"""The pictures of a report's page: roofline, saved bytes by layer, and the passes that ran."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup

from ..cost_model.roofline import exact_traffic
from ..pass_record import PassRecord
from ..plan import Decision
from .grouping import group_layers
from .roofline import Roofline
from .svg import Drawing
from .units import format_bytes, format_seconds

if TYPE_CHECKING:
    from .report import Report

__all__ = ["Picture", "pictures"]

LAYERS = 40
"""Bars of so many entries are drawn; the others are added up in one."""


@dataclass(frozen=True)
class Picture:
    """An SVG with the words below it."""

    title: str
    svg: Markup
    caption: str


def pictures(report: Report) -> Iterator[Picture]:
    """Those for which the report has figures."""
    if report.roofline is not None and report.roofline.moved:
        yield _roofline(report.plan.decisions, report.roofline)
    if any(d.exact_cost.saved_bytes or d.cost.saved_bytes for d in report.plan.decisions):
        yield _saved(report.plan.decisions)
    if report.passes:
        yield _passes(report.passes)


@dataclass(frozen=True)
class _Axis:
    """A logarithmic axis between two powers of ten."""

    low: int
    high: int
    start: float
    stop: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, stop: float) -> _Axis:
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        return cls(low, max(high, low + 1), start, stop)

    def __call__(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def powers(self) -> range:
        return range(self.low, self.high + 1)


@dataclass(frozen=True)
class _Point:
    """Products of the same shape and scheme: (operations per byte, operations per second) if exact and as chosen."""

    words: str
    exact: tuple[float, float]
    chosen: tuple[float, float] | None


def _points(decisions: tuple[Decision, ...], roofline: Roofline) -> list[_Point]:
    moved = {node: (exact, chosen) for node, exact, chosen in roofline.moved}
    points = []
    for group in group_layers(decisions):
        for row in group.rows:
            first = row.first
            if first.gemm.node not in moved or min(first.cost.seconds, first.exact_cost.seconds) <= 0:
                continue
            before, after = moved[first.gemm.node]
            flops = first.gemm.flops
            words = f"{group.title}: {first.gemm.role}, {first.gemm.shape()}, {first.scheme}"
            chosen = (flops / after, flops / first.cost.seconds) if first.rewritten else None
            points.append(_Point(words, (flops / before, flops / first.exact_cost.seconds), chosen))
    return points


def _roofline(decisions: tuple[Decision, ...], roofline: Roofline) -> Picture:
    points = _points(decisions, roofline)
    places = [place for point in points for place in (point.exact, point.chosen) if place]
    units = _units(decisions, roofline)
    drawing = Drawing(760, 400, "Roofline: operations per byte against operations per second of every product")
    across = _Axis.over([*(x for x, _ in places), *(rate / roofline.bandwidth for rate in units.values())], 70, 640)
    up = _Axis.over([*(y for _, y in places), *units.values()], 350, 34)
    _grid(drawing, across, up)
    for unit, rate in units.items():
        _roof(drawing, across, up, roofline.bandwidth, rate, unit)
    for point in points:
        x, y = across(point.exact[0]), up(point.exact[1])
        if point.chosen:
            ends = across(point.chosen[0]), up(point.chosen[1])
            drawing.line("link", (x, y), ends)
            drawing.circle("chosen", *ends, 5, point.words)
        drawing.circle("exact", x, y, 4.5, f"{point.words}: if exact")
    return Picture(
        "Roofline",
        drawing.render(),
        "Hollow: the product if exact. Filled: under its scheme, quantising included, joined to the former. Rates are "
        "predicted and count the operations of the exact product in both cases, so that a scheme that computes less "
        "may stand above its roof. Lines: what memory bandwidth and each unit allow.",
    )


def _units(decisions: tuple[Decision, ...], roofline: Roofline) -> dict[str, float]:
    """Rates of the units at work: those of the exact products and, where any is rewritten, of the integers."""
    units = {exact_traffic(decision.gemm).unit for decision in decisions}
    carriers = {str(getattr(d.scheme, "carrier", "int8")) for d in decisions if d.rewritten}
    units |= {"float8" if carrier.startswith("float8") else "int8" for carrier in carriers}
    return {unit: rate for unit, rate in roofline.rates.items() if unit in units}


def _grid(drawing: Drawing, across: _Axis, up: _Axis) -> None:
    for power in across.powers():
        drawing.line("grid", (across(10.0**power), up.start), (across(10.0**power), up.stop))
        drawing.text(f"{10.0**power:g}", across(10.0**power), up.start + 18, "middle quiet")
    for power in up.powers():
        drawing.line("grid", (across.start, up(10.0**power)), (across.stop, up(10.0**power)))
        drawing.text(_rate(10.0**power), across.start - 6, up(10.0**power) + 4, "end quiet")
    drawing.text("operations per byte", (across.start + across.stop) / 2, up.start + 38, "middle")
    drawing.text("operations per second", 4, 12)


def _roof(drawing: Drawing, across: _Axis, up: _Axis, bandwidth: float, rate: float, unit: str) -> None:
    left, right, floor = 10.0**across.low, 10.0**across.high, 10.0**up.low
    start = max(left, floor / bandwidth)
    drawing.line(
        "roof",
        (across(start), up(min(bandwidth * start, rate))),
        (across(max(rate / bandwidth, left)), up(rate)),
        (across(right), up(rate)),
        hint=f"{unit}: {_rate(rate)}, {bandwidth / 1e9:.4g} GB/s",
    )
    drawing.text(f"{unit} {_rate(rate)}", across.stop + 6, up(rate) + 4)


def _rate(rate: float) -> str:
    for unit, factor in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if rate >= factor:
            return f"{rate / factor:.3g} {unit}OP/s"
    return f"{rate:.3g} OP/s"


def _saved(decisions: tuple[Decision, ...]) -> Picture:
    bars = [
        (group.title, sum(row.exact_saved_bytes for row in group.rows), sum(row.saved_bytes for row in group.rows))
        for group in group_layers(decisions)
    ]
    bars = sorted((bar for bar in bars if bar[1] or bar[2]), key=lambda bar: -max(bar[1:]))
    others = bars[LAYERS:]
    if others:
        rest = sum(bar[1] for bar in others), sum(bar[2] for bar in others)
        bars = [*bars[:LAYERS], (f"{len(others)} other entries", *rest)]
    most = max(max(bar[1:]) for bar in bars)
    drawing = Drawing(760, 44 * len(bars) + 10, "Bytes saved for the backward by layer, if exact and as chosen")
    for place, (title, exact, chosen) in enumerate(bars):
        top = 44 * place + 4
        drawing.text(title if len(title) < 90 else f"{title[:89]}…", 4, top + 12)
        for kind, size, y in (("bar-exact", exact, top + 17), ("chosen", chosen, top + 27)):
            drawing.rectangle(kind, 4, y, max(620 * size / most, 1), 9, f"{title}: {format_bytes(size)}")
            drawing.text(format_bytes(size), 10 + 620 * size / most, y + 9, "quiet")
    return Picture(
        "Saved for the backward, by layer",
        drawing.render(),
        "Above: if exact. Below: as chosen. Bytes that the products of a layer have kept, as predicted; a tensor that "
        "several products share counts in equal parts.",
    )


def _passes(records: tuple[PassRecord, ...]) -> Picture:
    lanes: dict[str, list[PassRecord]] = {}
    for record in records:
        lanes.setdefault(record.graph, []).append(record)
    first = next(iter(lanes))
    indent = 172 * len(lanes[first]) if len(lanes) > 1 else 0
    length = max(172 * len(lane) + (indent if name != first else 0) for name, lane in lanes.items())
    drawing = Drawing(length + 20, 92 * len(lanes), "The passes in the order in which they ran, with their times")
    for row, (name, lane) in enumerate(lanes.items()):
        left, top = (0 if name == first else indent) + 6, 92 * row + 24
        drawing.text(f"{name} graph", left, top - 8, "quiet")
        if row:
            drawing.line(
                "edge", (indent - 14, 24 + 27), (indent - 4, 24 + 27), (indent - 4, top + 27), (left, top + 27)
            )
        for place, record in enumerate(lane):
            x = left + 172 * place
            if place:
                drawing.line("edge", (x - 20, top + 27), (x, top + 27))
            what = record.change or ("looked" if record.effect == "observes" else "no change")
            drawing.rectangle("box" if record.builtin else "box own", x, top, 152, 56, f"{record.name}: {what}")
            for line, words in enumerate((record.name, format_seconds(record.seconds), what)):
                short = words if len(words) < 24 else f"{words[:22]}…"
                drawing.text(short, x + 8, top + 16 + 16 * line, "quiet" if line else "")
    total = format_seconds(sum(record.seconds for record in records))
    return Picture(
        "Passes",
        drawing.render(),
        f"In the order in which they ran, {total} in all, without the checks between them. A thick frame: a pass of "
        "your own.",
    )
