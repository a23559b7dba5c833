"""Fusion: what became of the pointwise chain that makes a quantised tensor. A frozen value with a JSON form."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

__all__ = ["Fusion"]


@dataclass(frozen=True)
class Fusion:
    """One tensor that quantising kernels read.

    Attributes:
        layer: the module whose products read it.
        tensor: ``"g_y"`` or ``"x"``.
        node: of the graph.
        operations: what is computed in the quantising kernel, ``("gelu_backward",)``; empty: nothing is.
        forms: the quantised forms that one read now makes, ``"rows"``, ``"tokens"``; empty: the tensor is left alone.
        saved_bytes: that no longer cross the memory bus.
        reason: why it is left alone, or read twice.
    """

    layer: str
    tensor: str
    node: str
    operations: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()
    saved_bytes: int = 0
    reason: str = ""

    def read_twice(self, layer: str, tensor: str, again: int) -> Self:
        """The fact that ``again`` bytes are read once more, if this is what became of that layer's tensor."""
        if (self.layer, self.tensor, len(self.forms)) != (layer, tensor, 2) or self.reason:
            return self
        reason = "one form at a time, since both would raise the peak of memory"
        return dataclasses.replace(self, saved_bytes=self.saved_bytes - again, reason=reason)

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "operations": list(self.operations), "forms": list(self.forms)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """What ``to_json`` wrote, read back from JSON."""
        known = {key: data[key] for key in cls.__dataclass_fields__ if key in data}
        return cls(**{**known, "operations": tuple(data["operations"]), "forms": tuple(data["forms"])})
