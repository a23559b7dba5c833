"""Pictures as SVG text, readable on light and on dark pages: a drawing, axes with round ticks, the width of a word.

Lengths are in units of the picture, which are pixels where it is shown at its own size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from itertools import count, takewhile

__all__ = ["FONT", "Drawing", "Scale", "family", "text_width", "ticks"]

FONT = 12
"""Size of a picture's text."""

STYLE = """
    svg { font-family: system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; }
    .page { fill: #ffffff; stroke: #d0d7de; }
    text { fill: #1f2328; font-size: 12px; }
    .title { font-size: 15px; font-weight: 600; }
    .head { font-weight: 600; }
    .quiet { fill: #59636e; }
    .halo { stroke: #ffffff; stroke-width: 3px; stroke-linejoin: round; }
    .end { text-anchor: end; }
    .middle { text-anchor: middle; }
    .grid { stroke: #d0d7de; stroke-opacity: 0.7; }
    .axis { stroke: #59636e; fill: none; }
    .front { stroke: #1a7f37; stroke-width: 2; fill: none; }
    .leader { stroke: #8c959f; }
    .ours { fill: #0969da; }
    .inductor { fill: #6e7781; }
    .torchao { fill: #bc4c00; }
    .eager { fill: #bf8700; }
    @media (prefers-color-scheme: dark) {
      .page { fill: #0d1117; stroke: #30363d; }
      text { fill: #e6edf3; }
      .quiet { fill: #9198a1; }
      .halo { stroke: #0d1117; }
      .grid { stroke: #30363d; }
      .axis { stroke: #9198a1; }
      .front { stroke: #3fb950; }
      .leader { stroke: #6e7681; }
      .ours { fill: #4493f8; }
      .inductor { fill: #9198a1; }
      .torchao { fill: #f0883e; }
      .eager { fill: #d29922; }
    }
"""


class Drawing:
    """Elements in the order in which they are painted; ``kind`` is a class, or several, of ``STYLE``."""

    def __init__(self) -> None:
        self.elements: list[str] = []

    def line(self, kind: str, x1: float, y1: float, x2: float, y2: float) -> None:
        self.elements.append(f'<path class="{kind}" d="M{x1:.1f} {y1:.1f} L{x2:.1f} {y2:.1f}"/>')

    def path(self, kind: str, points: list[tuple[float, float]]) -> None:
        """Straight lines from point to point."""
        self.elements.append(f'<path class="{kind}" d="M{" L".join(f"{x:.1f} {y:.1f}" for x, y in points)}"/>')

    def rectangle(self, kind: str, x: float, y: float, width: float, height: float, round_by: float = 0) -> None:
        corner = f' rx="{round_by:g}"' if round_by else ""
        size = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
        self.elements.append(f'<rect class="{kind}" {size}{corner}/>')

    def circle(self, kind: str, x: float, y: float, radius: float) -> None:
        self.elements.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>')

    def text(self, words: str, x: float, y: float, kind: str = "", turned: bool = False) -> None:
        """Words on the base line ``y``; ``turned``: upwards, about their own start. A ``halo`` lies below them."""
        rotation = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
        plain = kind.replace("halo", "").strip()
        if plain != kind:  # an element of its own: not every program that shows pictures knows paint-order
            self._words(f"{plain} halo".strip(), f' aria-hidden="true"{rotation}', words, x, y)
        self._words(plain, rotation, words, x, y)

    def _words(self, kind: str, attributes: str, words: str, x: float, y: float) -> None:
        chosen = f' class="{" ".join(kind.split())}"' if kind else ""
        self.elements.append(f'<text{chosen} x="{x:.1f}" y="{y:.1f}"{attributes}>{escape(words)}</text>')

    def render(self, width: float, height: float, title: str, description: str, style: str = "") -> str:
        """The whole picture; title and description are for those who do not see it, ``style`` is added to ``STYLE``."""
        size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title description">',
            f'<title id="title">{escape(title)}</title>',
            f'<desc id="description">{escape(description)}</desc>',
            f"<style>{STYLE}{style}</style>",
            f'<rect class="page" x="0.5" y="0.5" width="{width - 1:.0f}" height="{height - 1:.0f}" rx="10"/>',
            *self.elements,
            "</svg>",
        ]
        return "\n  ".join(lines[:-1]) + "\n</svg>\n"


class Scale:
    """From values ``low`` … ``high`` to the places ``start`` … ``stop`` of a picture; low and high become round."""

    def __init__(self, low: float, high: float, start: float, stop: float, about: int = 6) -> None:
        self.ticks = ticks(low, high, about)
        self.low, self.high = self.ticks[0], self.ticks[-1]
        self.start, self.stop = start, stop

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers, about so many, from at most ``low`` to at least ``high``."""
    if high <= low:
        low, high = low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.floor(low / step + 1e-9)

    def places() -> Iterator[float]:
        yield from (round((first + i) * step, 12) for i in count())

    below = list(takewhile(lambda place: place < high - step * 1e-9, places()))
    return [*below, round((first + len(below)) * step, 12)]


def text_width(words: str, size: float = FONT) -> float:
    """How wide the words are at most in a usual font without serifs."""
    return 0.62 * size * len(words)


def family(contender: str) -> str:
    """The class of ``STYLE`` that a contender is painted in."""
    return next((name for name in ("eager", "inductor", "torchao") if contender.startswith(name)), "ours")
