"""Report: what became of one graph, as a value. Text and JSON are views of it; nothing is computed again for them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from rich.console import RenderableType

from ..errors import HadamardError, ReportError, SchemeError
from ..fusion import Fusion
from ..pass_record import PassRecord
from ..passes.formula import Formula, formula
from ..passes.graph_record import GraphRecord
from ..plan import Gemm, Plan
from . import text
from .measure import Measured
from .roofline import Roofline
from .saturation import Saturated, saturated_sums
from .save import save_as

__all__ = ["Report"]

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Report:
    """The plan of one graph and what was measured on it.

    Attributes:
        plan: every decision, with prices and reasons, and the origin of the settings.
        name: ``"graph 0"``.
        versions: of ``"torch"``, ``"triton"``, ``"hadamard_fx"``, ``"python"``.
        device: for a person, ``"NVIDIA H200"``.
        saved_before, saved_after: bytes kept between forward and backward, counted on the partitioned graph without and
            with the rewrites; None where that was not measured or the graph has no backward.
        saved: (node, bytes, layer) of each tensor that is kept, with the rewrites.
        passes: every run of every pass, with its time.
        fusions: what became of the producers of every tensor that a kernel quantises on its own.
        roofline: the device's figures and the bytes that each product moves; None in reports that lack them.
        graphs: the joint graph before and after the passes; None unless it was asked for.
        measured: seconds of the products in a run; None unless it was asked for.
        from_cache: the graph came from a compilation cache, so this report was stored by an earlier one.
        warnings: for a person, each a sentence.
    """

    SCHEMA: ClassVar[str] = "hadamard_fx.report"
    VERSION: ClassVar[int] = 1

    plan: Plan
    name: str = "graph"
    versions: dict[str, str] = field(default_factory=dict, hash=False)
    device: str = ""
    saved_before: int | None = None
    saved_after: int | None = None
    saved: tuple[tuple[str, int, str], ...] = ()
    fusions: tuple[Fusion, ...] = ()
    passes: tuple[PassRecord, ...] = ()
    roofline: Roofline | None = None
    graphs: GraphRecord | None = None
    measured: Measured | None = None
    from_cache: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Predicted time of all matrix products as chosen."""
        return sum(decision.cost.seconds for decision in self.plan.decisions)

    @property
    def exact_seconds(self) -> float:
        """Predicted time of all matrix products if none were rewritten."""
        return sum(decision.exact_cost.seconds for decision in self.plan.decisions)

    @property
    def saturation(self) -> tuple[Saturated, ...]:
        """How often each product's accumulators saturated so far; empty without ``{"count_saturation": True}``."""
        return saturated_sums(self.plan)

    def formula(self, gemm: Gemm | str) -> Formula:
        """The predicted seconds of a product under its scheme, as readable algebra.

        Args:
            gemm: the product, or the name of its node.

        Raises:
            ReportError: the report has no such product. SchemeError: its scheme states no launches.
        """
        node = gemm if isinstance(gemm, str) else gemm.node
        decision = self.plan.decision(node)
        if decision is None:
            known = ", ".join(d.gemm.node for d in self.plan.decisions) or "none"
            raise ReportError(f"the report has no product {node!r}; its products: {known}")
        return formula(decision.scheme, decision.gemm)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain JSON values; ``"totals"`` is there for readers and follows from the rest."""
        return {
            "schema": self.SCHEMA,
            "version": self.VERSION,
            "name": self.name,
            "device": self.device,
            "versions": dict(self.versions),
            "from_cache": self.from_cache,
            "warnings": list(self.warnings),
            "totals": {
                "products": len(self.plan.decisions),
                "rewritten": len(self.plan.rewrites()),
                "predicted_seconds": self.seconds,
                "predicted_seconds_exact": self.exact_seconds,
            },
            "saved_bytes_before": self.saved_before,
            "saved_bytes_after": self.saved_after,
            "saved": [{"node": node, "bytes": size, "layer": layer} for node, size, layer in self.saved],
            "fusions": [fusion.to_json() for fusion in self.fusions],
            "saturation": [entry.to_json() for entry in self.saturation],
            "passes": [record.to_json() for record in self.passes],
            "plan": self.plan.to_json(),
            "roofline": None if self.roofline is None else self.roofline.to_json(),
            "graphs": None if self.graphs is None else self.graphs.to_json(),
            "measured": None if self.measured is None else self.measured.to_json(),
        }

    def to_json(self, indent: int | None = None) -> str:
        """``as_dict`` as text."""
        return json.dumps(self.as_dict(), indent=indent, ensure_ascii=False)

    @classmethod
    def from_json(cls, data: str) -> Self:
        """The report that ``to_json`` wrote.

        Raises:
            ReportError: no JSON, not one of ours, or of a newer schema.
        """
        try:
            fields = json.loads(data)
        except json.JSONDecodeError as error:
            raise ReportError(f"a report must be JSON: {error}") from None
        return cls.from_dict(fields)

    @classmethod
    def from_dict(cls, fields: Any) -> Self:
        """The report that ``as_dict`` gave.

        Raises:
            ReportError: not one of ours, damaged, or of a newer schema.
        """
        if not isinstance(fields, dict) or fields.get("schema") != cls.SCHEMA:
            found = fields.get("schema") if isinstance(fields, dict) else type(fields).__name__
            raise ReportError(f"this JSON is no report of hadamard-fx: schema {found!r} instead of {cls.SCHEMA!r}")
        version = fields.get("version")
        if version != cls.VERSION:
            raise ReportError(
                f"the report has schema version {version!r}, this release reads {cls.VERSION}; "
                f"update hadamard-fx, or compile again to write a report of this release"
            )
        return cls._read(fields)

    @classmethod
    def _read(cls, fields: dict[str, Any]) -> Self:
        try:
            return cls(
                plan=Plan.from_json(fields["plan"]),
                name=fields["name"],
                versions=fields["versions"],
                device=fields["device"],
                saved_before=fields["saved_bytes_before"],
                saved_after=fields["saved_bytes_after"],
                saved=tuple((entry["node"], entry["bytes"], entry["layer"]) for entry in fields["saved"]),
                fusions=tuple(Fusion.from_json(entry) for entry in fields["fusions"]),
                passes=tuple(PassRecord.from_json(entry) for entry in fields.get("passes", ())),
                roofline=_optional(fields, "roofline", Roofline.from_json),
                graphs=_optional(fields, "graphs", GraphRecord.from_json),
                measured=_optional(fields, "measured", Measured.from_json),
                from_cache=fields["from_cache"],
                warnings=tuple(fields["warnings"]),
            )
        except SchemeError as error:
            raise ReportError(
                f"the report is damaged, or holds a scheme of your own: {error}; import the module that declares it "
                f"first (hadamard-fx report --import MODULE)"
            ) from None
        except (KeyError, TypeError, ValueError, AttributeError, HadamardError) as error:
            raise ReportError(f"the report is damaged: {type(error).__name__}: {error}") from None

    def text(self, *, details: bool = False, width: int | None = None) -> str:
        """For a terminal, without colours.

        Args:
            details: also every product by itself, with its source line and each rejected scheme, and what is saved.
            width: in columns; None: the terminal's, 100 where there is none.
        """
        return text.plain(self, details=details, width=width)

    def to_html(self) -> str:
        """One self-contained page: figures, sortable products, pictures, every rejected scheme with its reason."""
        from .page import page

        return page([self])

    def save(self, path: str | Path) -> Path:
        """Write the page (``.html``) or the JSON (``.json``), whole or not at all.

        Raises:
            ReportError: another ending, or the file cannot be written.
        """
        return save_as(path, html=self.to_html, json=lambda: self.to_json(indent=2))

    def _repr_html_(self) -> str:
        from .page import notebook

        return notebook(self)

    def __str__(self) -> str:
        return self.text()

    def render(self, *, details: bool = False) -> RenderableType:
        """For a ``rich`` console: the text with colours."""
        return text.render(self, details=details)

    def __rich__(self) -> RenderableType:
        return self.render()


def _optional(fields: dict[str, Any], key: str, read: Callable[[Any], _Value]) -> _Value | None:
    """What an older report need not have."""
    return None if fields.get(key) is None else read(fields[key])
