"""Inline SVG: elements in the order in which they are painted. Colours come from the page, by class."""

from __future__ import annotations

from html import escape

from markupsafe import Markup

__all__ = ["Drawing"]


class Drawing:
    """A picture of ``width`` × ``height`` pixels; ``kind`` is a class of the page's style sheet."""

    def __init__(self, width: float, height: float, label: str) -> None:
        self.width, self.height, self.label = width, height, label
        self._elements: list[str] = []

    def line(self, kind: str, *points: tuple[float, float], hint: str = "") -> None:
        """Straight lines from point to point."""
        path = " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self._add("path", kind, f'd="M{path}"', hint)

    def rectangle(self, kind: str, x: float, y: float, width: float, height: float, hint: str = "") -> None:
        self._add("rect", kind, f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="3"', hint)

    def circle(self, kind: str, x: float, y: float, radius: float, hint: str = "") -> None:
        self._add("circle", kind, f'cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"', hint)

    def text(self, words: str, x: float, y: float, kind: str = "") -> None:
        """Words on the base line ``y``."""
        chosen = f' class="{kind}"' if kind else ""
        self._elements.append(f'<text{chosen} x="{x:.1f}" y="{y:.1f}">{escape(words)}</text>')

    def _add(self, element: str, kind: str, attributes: str, hint: str) -> None:
        title = f"<title>{escape(hint)}</title>" if hint else ""
        self._elements.append(f'<{element} class="{kind}" {attributes}>{title}</{element}>')

    def render(self) -> Markup:
        """The picture as an element of a page."""
        size = f'width="{self.width:.0f}" height="{self.height:.0f}" viewBox="0 0 {self.width:.0f} {self.height:.0f}"'
        lines = [f'<svg {size} role="img" aria-label="{escape(self.label)}">', *self._elements, "</svg>"]
        return Markup("\n".join(lines))
