"""``Window``: which part of its input a convolution sees at each position. Imports nothing of the project."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Window"]


@dataclass(frozen=True)
class Window:
    """A window that slides over the axes of an image, one entry per axis.

    Attributes:
        kernel: elements under the window.
        stride: from one position to the next.
        padding: zeros in front of and behind the image.
        dilation: from one element under the window to the next.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def area(self) -> int:
        """Elements of one channel under the window."""
        return math.prod(self.kernel)

    @property
    def spans(self) -> tuple[int, ...]:
        """Elements from the first to the last one under the window."""
        return tuple(step * (count - 1) + 1 for count, step in zip(self.kernel, self.dilation, strict=True))

    def positions(self, image: Sequence[Any]) -> tuple[Any, ...]:
        """How many positions the window has along each axis of an image of these extents, numbers or symbols."""
        axes = zip(image, self.padding, self.spans, self.stride, strict=True)
        return tuple((extent + 2 * pad - span) // stride + 1 for extent, pad, span, stride in axes)

    def __str__(self) -> str:
        told = ["×".join(map(str, self.kernel))]
        for name, usual in (("stride", 1), ("padding", 0), ("dilation", 1)):
            values = getattr(self, name)
            if any(value != usual for value in values):
                told.append(f"{name} {values[0] if len(set(values)) == 1 else '×'.join(map(str, values))}")
        return ", ".join(told)
