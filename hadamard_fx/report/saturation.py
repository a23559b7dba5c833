"""How often the accumulators of each product saturated, read from the device when a report is looked at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ..kernels.saturation import counts
from ..plan import Decision, Plan

__all__ = ["Saturated", "saturated_sums", "view"]


@dataclass(frozen=True)
class Saturated:
    """One product: how many of its partial sums saturated, of how many, in all steps so far of this process."""

    decision: Decision
    saturated: int
    sums: int

    def to_json(self) -> dict[str, Any]:
        gemm = self.decision.gemm
        return {"node": gemm.node, "layer": gemm.layer, "role": str(gemm.role), **self._numbers()}

    def _numbers(self) -> dict[str, int]:
        return {"saturated": self.saturated, "sums": self.sums}


def saturated_sums(plan: Plan) -> tuple[Saturated, ...]:
    """The counts of every product that ran, in graph order. Graphs with equal plans share their counters.

    Waits for the device.
    """
    if not plan.counts_saturation:
        return ()
    digest = plan.digest()
    found = ((decision, counts(f"{digest} {decision.gemm.node}")) for decision in plan.rewrites())
    return tuple(Saturated(decision, *numbers) for decision, numbers in found if numbers is not None)


def view(found: tuple[Saturated, ...]) -> Iterator[RenderableType]:
    """Lines for the text of a report; none where nothing was counted."""
    if not found:
        return
    yield Text("\nPartial sums that saturated", style="bold")
    table = Table.grid(padding=(0, 2))
    for entry in found:
        gemm = entry.decision.gemm
        share = Text(f"{100 * entry.saturated / max(entry.sums, 1):.2f} %", justify="right")
        of = Text(f"{entry.saturated} of {entry.sums}", style="dim")
        table.add_row(gemm.layer or "(no module)", str(gemm.role), share, of)
    yield table
