"""Where to write the names of points, so that no name covers anything and none is taken for another point's."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from itertools import pairwise

from _svg import FONT, text_width

__all__ = ["RADIUS", "Box", "Point", "labels", "leader"]

RADIUS = 5
"""Of a point."""

MARGIN = 3
"""Between a name and whatever it must not touch."""

NEAR = 3 * RADIUS
"""From so far away on, a leader joins a name to its point."""

FARTHEST = 120
"""How far from its point a name may stand."""

DIRECTIONS = (
    *((1.0, 0.0), (-1.0, 0.0), (0.0, -1.0), (0.0, 1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, -1.0), (-1.0, 1.0)),
    *((1.0, -0.5), (1.0, 0.5), (-1.0, -0.5), (-1.0, 0.5), (0.5, -1.0), (0.5, 1.0), (-0.5, -1.0), (-0.5, 1.0)),
)
"""(across, down) of the places to try around a point, the preferred first."""

ORDERS = 20
"""Random orders to try."""

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def labels(names: Sequence[str], points: Sequence[Point], line: Sequence[Point], frame: Box) -> list[Box]:
    """A box for each name, as near to its point as there is room; beside it where the picture is full.

    The name that comes first has the most room, so several orders are tried (the same at every call) and the one with
    the shortest ways is taken.

    Args:
        line: a line that no name may cover; leaders may cross it, not follow it.
        frame: what the names must stay inside.
    """
    order = sorted(range(len(names)), key=lambda place: -len(names[place]))
    shuffle = random.Random(0).sample
    tried = [_in_order(order, names, points, line, frame)]
    tried += [_in_order(shuffle(order, len(order)), names, points, line, frame) for _ in range(ORDERS)]
    _, found = min(tried, key=lambda pair: pair[0])
    return [found[place] for place in range(len(names))]


def _in_order(
    order: Sequence[int], names: Sequence[str], points: Sequence[Point], line: Sequence[Point], frame: Box
) -> tuple[float, dict[int, Box]]:
    """(how far the names are from their points, with a penalty for those without room, the boxes)."""
    found: dict[int, Box] = {}
    far = 0.0
    for own in order:
        boxes = list(_around(points[own], text_width(names[own]), FONT + 2))
        fit = next((b for b in boxes if _inside(b, frame) and _fits(b, own, points, line, found)), None)
        found[own] = fit or boxes[0]
        far += _distance(points[own], fit) if fit else FARTHEST
    return far, found


def leader(point: Point, box: Box) -> list[Point]:
    """Places on the way from a point to a box that is far from it, the last at the box; none where it is near."""
    x, y = point
    to_x, to_y = min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])
    length = math.dist(point, (to_x, to_y))
    steps = int(length / 4) if length >= NEAR else 0
    return [(x + (to_x - x) * i / steps, y + (to_y - y) * i / steps) for i in range(1, steps + 1)]


def _fits(box: Box, own: int, points: Sequence[Point], line: Sequence[Point], found: dict[int, Box]) -> bool:
    """Whether the name of point ``own`` can stand in ``box``, among the names ``found`` before."""
    others = [point for place, point in enumerate(points) if place != own]
    ways = [place for name, other in found.items() for place in leader(points[name], other)]
    rails = [(min(a, c), min(b, d), max(a, c), max(b, d)) for (a, b), (c, d) in pairwise(line)]
    if any(_distance(point, box) < RADIUS + MARGIN for point in points):
        return False
    if any(_overlap(box, other) for other in (*found.values(), *rails)) or any(_distance(p, box) < 1 for p in ways):
        return False
    way = leader(points[own], box)
    if not way:  # nothing but nearness tells whose name it is
        return all(_distance(point, box) > _distance(points[own], box) + MARGIN for point in others)
    along = sum(any(_distance(place, rail) < MARGIN for rail in rails) for place in way)
    crossed = any(_distance(place, other) < 1 for place in way for other in found.values())
    return not crossed and along <= 3 and all(math.dist(place, p) > RADIUS for place in way for p in others)


def _around(point: Point, width: float, height: float) -> Iterator[Box]:
    """Boxes beside, above and below a point, then further and further away."""
    x, y = point
    for distance in range(RADIUS + MARGIN + 1, FARTHEST, 7):
        for across, down in DIRECTIONS:
            left = x + across * distance - (width if across < 0 else width / 2 if across == 0 else 0)
            top = y + down * distance - (height if down < 0 else height / 2 if down == 0 else 0)
            yield left, top, left + width, top + height


def _distance(point: Point, box: Box) -> float:
    x, y = point
    return math.dist(point, (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])))


def _inside(box: Box, frame: Box) -> bool:
    return box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]


def _overlap(one: Box, other: Box) -> bool:
    beside = one[0] - MARGIN < other[2] and other[0] - MARGIN < one[2]
    return beside and one[1] - MARGIN < other[3] and other[1] - MARGIN < one[3]
