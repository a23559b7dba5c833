"""Reports as one HTML page that needs nothing else: style, script and pictures are in it.

The page is filled with what ``view_of`` says of a report, which is plain words and numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from ..fusion import Fusion
from ..plan import Decision, Plan
from . import pictures
from .prices import prices
from .saturation import Saturated
from .table import short_names
from .units import format_bytes, format_seconds, format_share

if TYPE_CHECKING:
    from .report import Report

__all__ = ["notebook", "page"]

_WHY = "why"
_ORIGINS = {"options": "the options", "environment": "the environment", "file": "hadamard.toml"}


@dataclass(frozen=True)
class Column:
    """Of the table of products, so many rem wide; ``number``: its cells are numbers, sorted as such."""

    name: str
    rem: float = 6
    number: bool = True

    @property
    def width(self) -> str:
        """As a track of a grid; the last column, of sentences, takes what is left."""
        return f"{self.rem:g}rem" if self.number or self.name != _WHY else f"minmax({self.rem:g}rem, 1fr)"


@dataclass(frozen=True)
class Cell:
    """What a person reads, what is sorted by (None: the text; ``""``: nothing), and a class of the style sheet."""

    text: str
    value: float | str | None = None
    kind: str = "number"


def page(reports: Iterable[Report]) -> str:
    """One page with a section per graph."""
    views = [view_of(report) for report in reports]
    return _template("page.html.jinja").render(views=views, style=_asset("page.css"), script=_asset("page.js"))


def notebook(report: Report) -> str:
    """A short piece of HTML for a notebook: the cards, and the text of the report to be opened."""
    return _template("notebook.html.jinja").render(view=_summary(report), text=report.text(width=110))


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("hadamard_fx.report", "web"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _template(name: str) -> jinja2.Template:
    return _environment().get_template(name)


def _asset(name: str) -> Markup:
    environment = _environment()
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, name)[0])


def _summary(report: Report) -> dict[str, Any]:
    kind = "training" if report.plan.training else "inference"
    device = report.device or report.plan.device
    facts = [f"{package} {version}" for package, version in report.versions.items() if version != "not installed"]
    return {
        "title": f"{report.name}, {kind}",
        "facts": [*filter(None, [device]), *facts, *(["from the compilation cache"] if report.from_cache else [])],
        "warnings": report.warnings,
        "cards": list(_cards(report)),
    }


def view_of(report: Report) -> dict[str, Any]:
    """What the page says of one report."""
    columns, products = _products(report)
    return {
        **_summary(report),
        "settings": _settings(report.plan),
        "columns": columns,
        "least": f"{sum(column.rem for column in columns):g}rem",
        "products": products,
        "roles": sorted({product["role"] for product in products}),
        "schemes": sorted({product["scheme"] for product in products}),
        "pictures": list(pictures.pictures(report)),
        "fusions": [_fusion(fusion) for fusion in report.fusions],
        "prices": prices(report.plan),
        "saturation": [_saturated(entry) for entry in report.saturation],
        "graphs": None if report.graphs is None else report.graphs.to_json(),
    }


def _card(name: str, value: str, note: str = "") -> dict[str, str]:
    return {"name": name, "value": value, "note": note}


def _cards(report: Report) -> Iterator[dict[str, str]]:
    products, rewritten = len(report.plan.decisions), len(report.plan.rewrites())
    share = format_share(rewritten / products) if products else "none"
    yield _card("products", str(products), f"{rewritten} rewritten")
    yield _card("share quantised", share, f"{_share_of_operations(report.plan)} of the operations")
    ratio = f"if exact → as chosen, {report.seconds / report.exact_seconds:.2f}×" if report.exact_seconds else ""
    seconds = f"{format_seconds(report.exact_seconds)} → {format_seconds(report.seconds)}"
    yield _card("predicted time of products", seconds, ratio)
    if report.measured is not None:
        taken, of = sum(seconds for _, seconds in report.measured.seconds), len(report.measured.seconds)
        yield _card("measured time of products", format_seconds(taken), f"{of} of {products}, as chosen")
    before, after = report.saved_before, report.saved_after
    if before is not None and after is not None:
        change = f"if exact → as chosen, {100 * (after / before - 1):+.0f} %".replace("-", "−") if before else ""
        yield _card("saved for backward", f"{format_bytes(before)} → {format_bytes(after)}", change)
    priced = f"priced as {report.plan.device}" if report.plan.device else ""
    yield _card("device", report.device or report.plan.device or "unknown", priced)
    asked = [entry for entry in _settings(report.plan) if entry["origin"] != "default"]
    value = ", ".join(f"{entry['name']} = {entry['value']}" for entry in asked) or "all at their defaults"
    origins = " and ".join(dict.fromkeys(entry["origin"] for entry in asked))
    yield _card("settings", value, f"from {origins}" if origins else "")


def _share_of_operations(plan: Plan) -> str:
    total = sum(decision.gemm.flops for decision in plan.decisions)
    return format_share(sum(d.gemm.flops for d in plan.rewrites()) / total) if total else "none"


def _settings(plan: Plan) -> list[dict[str, str]]:
    return [
        {"name": name, "value": str(value), "origin": _ORIGINS.get(origin, origin)}
        for name, (value, origin) in plan.settings
    ]


def _products(report: Report) -> tuple[list[Column], list[dict[str, Any]]]:
    plan, measured = report.plan, report.measured
    names = short_names(plan.decisions)
    times = dict(() if measured is None else measured.seconds)
    with_errors = any(error for decision in plan.decisions for error in _errors(decision))
    columns = [Column("layer", 12, False), Column("product", 7, False), *(Column(size, 4.5) for size in "MNK")]
    columns += [Column("computed as", 9, False), Column("time if exact"), Column("time")]
    columns += [Column("saved if exact"), Column("saved")]
    columns += [Column("error predicted", 6.5), Column("error measured", 6.5)] if with_errors else []
    columns += [] if measured is None else [Column("time measured")]
    columns.append(Column(_WHY, 16, False))
    products = []
    for decision in plan.decisions:
        cells = [*_cells(decision, names[decision.scheme])]
        cells += [_number(error, format_share) for error in _errors(decision)] if with_errors else []
        cells += [] if measured is None else [_number(times.get(decision.gemm.node), format_seconds)]
        products.append(
            {
                "node": decision.gemm.node,
                "role": str(decision.gemm.role),
                "scheme": names[decision.scheme],
                "rewritten": decision.rewritten,
                "reason": decision.reason,
                "cells": cells,
                "facts": _facts(decision),
                "rejected": [
                    {
                        "scheme": str(other.scheme),
                        "price": "" if other.cost is None else format_seconds(other.cost.seconds),
                        "reason": other.reason,
                    }
                    for other in decision.rejected
                ],
            }
        )
    return columns, products


def _cells(decision: Decision, scheme: str) -> Iterator[Cell]:
    gemm = decision.gemm
    yield Cell(gemm.layer or "(no module)", None, "layer")
    batch = f" ×{gemm.batch}" if gemm.batch.hint != 1 or gemm.batch.symbol else ""
    yield Cell(f"{gemm.role}{batch}", None, "")
    for size in (gemm.M, gemm.N, gemm.K):
        yield Cell(str(size), size.hint)
    yield Cell(scheme, None, "scheme")
    yield _number(decision.exact_cost.seconds, format_seconds)
    yield _number(decision.cost.seconds, format_seconds)
    yield _number(decision.exact_cost.saved_bytes, format_bytes)
    yield _number(decision.cost.saved_bytes, format_bytes)


def _number(value: Any, show: Any) -> Cell:
    return Cell("–", "") if value is None else Cell(show(value), value)


def _errors(decision: Decision) -> Sequence[float | None]:
    """Relative error, predicted and measured; only a calibration knows the latter."""
    return decision.cost.error, getattr(decision, "measured_error", None)


def _facts(decision: Decision) -> list[str]:
    gemm = decision.gemm
    facts = [
        f"{gemm.node}: {gemm.operation}, {gemm.shape()}, {gemm.dtype} on {gemm.device}",
        f"scheme: {decision.scheme}",
    ]
    facts.append(f"operands {gemm.left}, {gemm.right}" + (f"; weight {gemm.weight}" if gemm.weight else ""))
    return [*facts, f"source {gemm.source}"] if gemm.source else facts


def _fusion(fusion: Fusion) -> dict[str, str]:
    computed = f"computes {', '.join(fusion.operations)}" if fusion.operations else ""
    forms = f"makes {' and '.join(fusion.forms)}" if fusion.forms else "nothing: quantised from memory"
    what = "; ".join(filter(None, (forms, computed, fusion.reason)))
    return {
        "tensor": fusion.tensor,
        "layer": fusion.layer or "(no module)",
        "what": what,
        "saved": format_bytes(fusion.saved_bytes),
    }


def _saturated(entry: Saturated) -> dict[str, str]:
    gemm = entry.decision.gemm
    share = format_share(entry.saturated / max(entry.sums, 1))
    return {
        "layer": gemm.layer or "(no module)",
        "role": str(gemm.role),
        "share": share,
        "of": f"{entry.saturated} of {entry.sums}",
    }
