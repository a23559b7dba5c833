"""What differs between two reports of a model: products, settings, totals. A value; text and JSON are views of it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ..plan import Decision
from .report import Report
from .units import format_bytes, format_seconds

__all__ = ["GraphDiff", "ProductDiff", "compare", "compare_all"]

_Key = tuple[str, str, int]


@dataclass(frozen=True)
class Change:
    """One thing that is different; None on the side that lacks it."""

    what: str
    before: Any
    after: Any

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class ProductDiff:
    """One product of a layer: which of its shape, scheme, seconds, saved bytes, error and reason changed."""

    layer: str
    role: str
    changes: tuple[Change, ...]

    def to_json(self) -> dict[str, Any]:
        return {"layer": self.layer, "role": self.role, "changes": [change.to_json() for change in self.changes]}


@dataclass(frozen=True)
class GraphDiff:
    """Two reports of one graph.

    Attributes:
        name: of the graph.
        facts: device, versions and settings that differ.
        products: those that differ, in the order of the first report, then those that only the second has.
        totals: of products, seconds and bytes that differ.
    """

    name: str
    facts: tuple[Change, ...]
    products: tuple[ProductDiff, ...]
    totals: tuple[Change, ...]

    def __bool__(self) -> bool:
        """Whether anything differs."""
        return bool(self.facts or self.products or self.totals)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "facts": [change.to_json() for change in self.facts],
            "products": [product.to_json() for product in self.products],
            "totals": [change.to_json() for change in self.totals],
        }

    def __rich__(self) -> RenderableType:
        lines = [Text(self.name, style="bold")]
        if not self:
            lines.append(Text("  no difference"))
        lines += [_line(change) for change in self.facts]
        for product in self.products:
            lines.append(Text(f"  {product.layer or '(no module)'}, {product.role}"))
            lines += [Text("  ").append_text(_line(change)) for change in product.changes]
        if self.totals:
            lines += [Text("totals", style="bold"), *map(_line, self.totals)]
        return Group(*lines)


def compare_all(before: Sequence[Report], after: Sequence[Report]) -> tuple[GraphDiff, ...]:
    """Graph by graph, in order. A graph that only one side has differs as a whole."""
    found = [compare(one, other) for one, other in zip(before, after, strict=False)]
    common = len(found)
    found += [_alone(report, "only in the first") for report in before[common:]]
    found += [_alone(report, "only in the second") for report in after[common:]]
    return tuple(found)


def compare(before: Report, after: Report) -> GraphDiff:
    """What differs between two reports; times of passes and names of graphs do not count.

    Products are told apart by layer, role and their order among those of the same layer and role.
    """
    return GraphDiff(
        before.name if before.name == after.name else f"{before.name} / {after.name}",
        tuple(_changes(dict(_facts(before)), dict(_facts(after)))),
        tuple(_products(before, after)),
        tuple(_changes(_totals(before), _totals(after))),
    )


def _alone(report: Report, where: str) -> GraphDiff:
    first = where.endswith("first")
    change = Change("graph", report.name, None) if first else Change("graph", None, report.name)
    return GraphDiff(f"{report.name}, {where}", (change,), (), ())


def _facts(report: Report) -> Iterator[tuple[str, Any]]:
    yield "device", report.device
    yield "priced as", report.plan.device
    yield "kind", "training" if report.plan.training else "inference"
    yield from ((f"version of {package}", version) for package, version in report.versions.items())
    yield from ((f"setting {name}", f"{value} ({origin})") for name, (value, origin) in report.plan.settings)


def _totals(report: Report) -> dict[str, Any]:
    return {
        "products": len(report.plan.decisions),
        "rewritten": len(report.plan.rewrites()),
        "seconds if exact": report.exact_seconds,
        "seconds": report.seconds,
        "saved bytes if exact": report.saved_before,
        "saved bytes": report.saved_after,
    }


def _keyed(report: Report) -> dict[_Key, Decision]:
    seen: Counter[tuple[str, str]] = Counter()
    found: dict[_Key, Decision] = {}
    for decision in report.plan.decisions:
        name = decision.gemm.layer, str(decision.gemm.role)
        found[(*name, seen[name])] = decision
        seen[name] += 1
    return found


def _products(before: Report, after: Report) -> Iterator[ProductDiff]:
    one, other = _keyed(before), _keyed(after)
    for key in dict.fromkeys((*one, *other)):
        left, right = one.get(key), other.get(key)
        if left is None or right is None:
            changes: tuple[Change, ...] = (Change("product", left and left.gemm.shape(), right and right.gemm.shape()),)
        else:
            changes = tuple(_changes(_of(left), _of(right)))
        if changes:
            yield ProductDiff(key[0], key[1], changes)


def _of(decision: Decision) -> dict[str, Any]:
    return {
        "shape": decision.gemm.shape(),
        "dtype": decision.gemm.dtype,
        "scheme": str(decision.scheme),
        "seconds": decision.cost.seconds,
        "seconds if exact": decision.exact_cost.seconds,
        "saved bytes": decision.cost.saved_bytes,
        "saved bytes if exact": decision.exact_cost.saved_bytes,
        "error": decision.cost.error,
        "reason": decision.reason,
    }


def _changes(before: dict[str, Any], after: dict[str, Any]) -> Iterator[Change]:
    for key in dict.fromkeys((*before, *after)):
        left, right = before.get(key), after.get(key)
        if left != right:
            yield Change(key, left, right)


def _line(change: Change) -> Text:
    before, after = (_shown(change.what, value) for value in (change.before, change.after))
    return Text(f"  {change.what}: ").append(before, style="red").append(" → ").append(after, style="green")


def _shown(what: str, value: Any) -> str:
    if value is None:
        return "none"
    if what.startswith("seconds"):
        return format_seconds(value)
    return format_bytes(value) if what.startswith("saved bytes") else str(value)
