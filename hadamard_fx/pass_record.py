"""What one pass did to one graph: the manager writes these, the report shows them. Imports nothing of the project."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Self

__all__ = ["PassRecord"]


@dataclass(frozen=True)
class PassRecord:
    """One run of one pass.

    Attributes:
        name: of the pass.
        effect: ``"observes"``, ``"decides"`` or ``"rewrites"``: all that it may do.
        graph: what it ran on: ``"joint"``, ``"inference"``, ``"forward"`` or ``"backward"``.
        seconds: its own time, without the checks behind it.
        change: what became different, ``"4 decisions"``, ``"+12 −3 nodes"``; ``""``: nothing.
        builtin: it is a stage of this project, not somebody's own pass.
        options: its fields as JSON or, where JSON has no word for a value, as text.
        facts: what it found, as JSON.
    """

    name: str
    effect: str
    graph: str
    seconds: float
    change: str = ""
    builtin: bool = True
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    facts: dict[str, Any] = field(default_factory=dict, hash=False)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        return cls(**{key: data[key] for key in cls.__dataclass_fields__ if key in data})
