"""The table of products: a title per group of layers, then a row per product, in columns that all groups share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from ..plan import Decision, Gemm
from ..scheme import Scheme
from .grouping import LayerGroup, Row, group_layers
from .units import format_bytes, format_seconds

__all__ = ["ProductTable"]

_HEADER = ("layer and product", "M×N×K", "computed as", "time", "if exact", "saved", "if exact", "why")
_IF_EXACT = (4, 6)
_FLEXIBLE = 3
"""The leading columns are left-aligned and may fold in a narrow terminal; the others are right-aligned figures."""


@dataclass(frozen=True)
class ProductTable:
    """The table and, numbered as in its last column, the reasons.

    Layers that were treated alike share their rows, with times and bytes summed: the columns add up to the totals.
    A terminal too narrow for all columns gets the table without the two that say what exact would take.
    """

    decisions: tuple[Decision, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names = short_names(self.decisions)
        reasons: dict[str, int] = {}
        blocks = []
        for group in group_layers(self.decisions):
            rows = [_cells(row, names, reasons.setdefault(row.first.reason, len(reasons) + 1)) for row in group.rows]
            blocks.append((_title(group), rows))
        widths = _widths([_HEADER, *(row for _, rows in blocks for row in rows)], options.max_width)
        yield _grid([_HEADER], widths)
        yield Rule(style="dim")
        for title, rows in blocks:
            yield Text(title, style="bold")
            yield _grid(rows, widths)
        yield Text()
        yield from (Text(f"[{number}] {reason}") for reason, number in reasons.items())


def short_names(decisions: tuple[Decision, ...]) -> dict[Scheme, str]:
    """A short name for each scheme, the long one where two would have the same."""
    schemes = dict.fromkeys(d.scheme for d in decisions)
    short = {scheme: str(scheme).split(", per ")[0].replace(" in float8_e4m3", " fp8") for scheme in schemes}
    names = list(short.values())
    return {scheme: name if names.count(name) == 1 else str(scheme) for scheme, name in short.items()}


def _widths(rows: Sequence[tuple[str | Text, ...]], available: int) -> dict[int, int]:
    """Columns that are shown, with their widths; a space of air before each figure that begins a pair."""
    widths = {column: max(len(row[column]) for row in rows) for column in range(len(_HEADER))}
    widths.update({column: widths[column] + 1 for column in (3, 5, 7)})
    if sum(widths.values()) + len(widths) - 1 > available:
        widths = {column: width for column, width in widths.items() if column not in _IF_EXACT}
    return widths


def _grid(rows: Sequence[tuple[str | Text, ...]], widths: dict[int, int]) -> Table:
    table = Table.grid(padding=(0, 1))
    for column, width in widths.items():
        if column < _FLEXIBLE:
            table.add_column(width=width, overflow="fold")
        else:
            table.add_column(width=width, justify="right", no_wrap=True, style="dim" if column in _IF_EXACT else "")
    for row in rows:
        table.add_row(*(row[column] for column in widths))
    return table


def _title(group: LayerGroup) -> str:
    title = f"{group.title} ({len(group.layers)} layers)" if len(group.layers) > 1 else group.title
    gemm = group.rows[0].first.gemm
    return title if gemm.window is None else f"{title}, {gemm.operation}"


def _cells(row: Row, names: dict[Scheme, str], reason: int) -> tuple[str | Text, ...]:
    decision = row.first
    style = "green" if decision.rewritten else ""
    times = f" ×{len(row.decisions)}" if len(row.decisions) > 1 else ""
    return (
        f"  {decision.gemm.role}{times}",
        _shape(decision.gemm),
        Text(names[decision.scheme], style=style),
        Text(format_seconds(row.seconds), style=style),
        format_seconds(row.exact_seconds),
        Text(format_bytes(row.saved_bytes), style=style),
        format_bytes(row.exact_saved_bytes),
        f"[{reason}]",
    )


def _shape(gemm: Gemm) -> str:
    """Numbers only; ``≈`` says that one of them stands for a symbol, which the details show."""
    sizes = (gemm.M, gemm.N, gemm.K)
    batch = f"{gemm.batch.hint}× " if gemm.batch.hint != 1 or gemm.batch.symbol else ""
    dynamic = "≈" if any(size.symbol for size in (gemm.batch, *sizes)) else ""
    return dynamic + batch + "×".join(str(size.hint) for size in sizes)
