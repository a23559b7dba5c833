"""The report as text: one table, a row per product, then the reasons, the totals and where the settings came from."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..fusion import Fusion
from ..plan import Decision
from . import saturation
from .table import ProductTable
from .units import format_bytes, format_seconds

if TYPE_CHECKING:
    from .measure import Measured
    from .report import Report

__all__ = ["WIDTH", "plain", "render"]

WIDTH = 100
"""Columns, where no terminal says how many it has."""


def plain(report: Report, *, details: bool = False, width: int | None = None) -> str:
    """The report without colours; ``width`` in columns, the terminal's by default."""
    columns = width or min(max(shutil.get_terminal_size((WIDTH, 24)).columns, 80), 160)
    console = Console(file=io.StringIO(), width=columns, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(render(report, details=details))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def render(report: Report, *, details: bool = False) -> RenderableType:
    """The report for ``rich``."""
    parts: list[RenderableType] = [_header(report)]
    parts += [Text(f"warning: {warning}", style="yellow") for warning in report.warnings]
    if report.plan.decisions:
        parts += [Text(), ProductTable(report.plan.decisions)]
    parts += [Text(), _totals(report)]
    if any(fusion.forms for fusion in report.fusions):
        parts += [Text(), _fused(report)]
    parts += [Text(), _settings(report), *saturation.view(report.saturation)]
    if details:
        parts += [*_details(report), *_saved(report), *_not_fused(report), *_passes(report)]
    return Group(*parts)


def _header(report: Report) -> Text:
    kind = "training" if report.plan.training else "inference"
    cached = ", from the compilation cache" if report.from_cache else ""
    device = report.device or report.plan.device
    priced = f", priced as {report.plan.device}" if report.plan.device not in ("", device) else ""
    facts = [device + priced] if device else []
    for package in ("torch", "triton"):
        if report.versions.get(package, "not installed") != "not installed":
            facts.append(f"{package} {report.versions[package]}")
    title = Text.assemble(("hadamard-fx", "bold"), f"  {report.name}, {kind}{cached}")
    return title.append("\n" + "  ·  ".join(facts), style="dim") if facts else title


def _totals(report: Report) -> RenderableType:
    decisions, rewritten = report.plan.decisions, report.plan.rewrites()
    if not decisions:
        return Text("No matrix product was found that this backend looks at.")
    table = Table.grid(padding=(0, 2))
    table.add_row("products", f"{len(rewritten)} of {len(decisions)} rewritten")
    ratio = f"  ({report.seconds / report.exact_seconds:.2f}× the time)" if report.exact_seconds else ""
    exact, chosen = format_seconds(report.exact_seconds), format_seconds(report.seconds)
    table.add_row("predicted time of all products", f"{exact} if exact → {chosen}{ratio}")
    if report.measured is not None:
        table.add_row("measured time of products", _measured(report.measured, len(decisions)))
    if report.saved_before is not None and report.saved_after is not None:
        change = f"  ({100 * (report.saved_after / report.saved_before - 1):+.0f} %)" if report.saved_before else ""
        before, after = format_bytes(report.saved_before), format_bytes(report.saved_after)
        table.add_row("saved for backward, whole graph", f"{before} if exact → {after}{change.replace('-', '−')}")
    for scheme in dict.fromkeys(d.scheme for d in rewritten):
        table.add_row("scheme", str(scheme))
    return table


def _measured(measured: Measured, products: int) -> str:
    taken = format_seconds(sum(seconds for _, seconds in measured.seconds))
    rest = sum(seconds for _, seconds in measured.unmatched)
    shared = f"; {format_seconds(rest)} in kernels of no single product" if measured.unmatched else ""
    return f"{taken}, {len(measured.seconds)} of {products} products found in the run{shared}"


def _settings(report: Report) -> RenderableType:
    origins = {"options": "from the options", "environment": "from the environment", "file": "from hadamard.toml"}
    table = Table.grid(padding=(0, 2))
    defaults = []
    for key, (value, origin) in report.plan.settings:
        if origin == "default":
            defaults.append(f"{key} = {_value(value)}" if value else key)
        else:
            table.add_row(f"{key} = {_value(value)}", Text(origins.get(origin, origin), style="dim"))
    if defaults:
        table.add_row(", ".join(defaults), Text("default", style="dim"))
    return table


def _value(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_value(entry)}" for key, entry in value.items()) + "}"
    return str(value)


def _fused(report: Report) -> Text:
    """A line for each tensor that one kernel reads, or computes, for all its quantised forms."""
    lines = []
    for fusion in report.fusions:
        if fusion.forms:
            computed = f"{', '.join(fusion.operations)} computed in the quantising kernel" if fusion.operations else ""
            what = computed or "both quantised forms from one read"
            what += f", {fusion.reason}" if fusion.reason else ""
            lines.append(f"{_named(fusion)}: {what}, {format_bytes(fusion.saved_bytes)} less traffic")
    return Text("\n".join(lines))


def _not_fused(report: Report) -> Iterator[RenderableType]:
    alone = [fusion for fusion in report.fusions if not fusion.forms]
    if alone:
        yield Text("\nQuantised from memory", style="bold")
        yield Text("\n".join(f"{_named(fusion)}: {fusion.reason}" for fusion in alone), style="dim")


def _named(fusion: Fusion) -> str:
    return f"{fusion.tensor} of {fusion.layer or '(no module)'}"


def _details(report: Report) -> Iterator[RenderableType]:
    yield Text("\nEvery product", style="bold")
    for decision in report.plan.decisions:
        gemm = decision.gemm
        yield Text(f"{gemm.node}: {gemm.role} of {gemm.layer or '(no module)'}, {gemm.shape()}, {gemm.dtype}")
        lines = [f"{decision.scheme}, {_price(decision)}: {decision.reason}"]
        lines += _timed(report, gemm.node)
        lines += [gemm.operation] if gemm.window is not None else []
        lines += [f"operands {gemm.left}, {gemm.right}" + (f"; weight {gemm.weight}" if gemm.weight else "")]
        lines += [f"source {gemm.source}"] if gemm.source else []
        for other in decision.rejected:
            price = f", {format_seconds(other.cost.seconds)}" if other.cost else ""
            lines.append(f"not {other.scheme}{price}: {other.reason}")
        yield Padding(Text("\n".join(lines), style="dim"), (0, 0, 0, 2))


def _timed(report: Report, node: str) -> list[str]:
    if report.measured is None:
        return []
    seconds = dict(report.measured.seconds).get(node)
    return ["not found in the run" if seconds is None else f"measured {format_seconds(seconds)}"]


def _price(decision: Decision) -> str:
    if not decision.rewritten:
        return format_seconds(decision.cost.seconds)
    seconds = f"{format_seconds(decision.cost.seconds)} instead of {format_seconds(decision.exact_cost.seconds)}"
    return ", ".join((seconds, *_errors(decision)))


def _errors(decision: Decision) -> Iterator[str]:
    """The relative error of the result, predicted and, with a calibration, measured."""
    known = ((decision.cost.error, "predicted"), (decision.measured_error, "measured"))
    told = [f"{_share(error)} {how}" for error, how in known if error is not None]
    if told:
        yield f"error {', '.join(told)}"


def _share(value: float) -> str:
    return f"{100 * value:.2g} %" if value < 1 else f"{100 * value:.0f} %"


def _saved(report: Report) -> Iterator[RenderableType]:
    if not report.saved:
        return
    yield Text("\nSaved for backward", style="bold")
    table = Table.grid(padding=(0, 2))
    for node, size, layer in sorted(report.saved, key=lambda entry: -entry[1]):
        table.add_row(Text(format_bytes(size), justify="right"), node, Text(layer, style="dim"))
    yield table


def _passes(report: Report) -> Iterator[RenderableType]:
    if not report.passes:
        return
    yield Text("\nPasses", style="bold")
    table = Table.grid(padding=(0, 2))
    for record in report.passes:
        told = [record.change or "no change"] if record.effect != "observes" else []
        told += [f"{key} = {_value(value)}" for key, value in {**record.options, **record.facts}.items()]
        name = Text(record.name, style="" if record.builtin else "green")
        time = Text(format_seconds(record.seconds), justify="right")
        table.add_row(name, time, record.graph, Text(f"{record.effect}: {', '.join(told)}", style="dim"))
    yield table
