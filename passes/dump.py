"""Graphs and plans as text, and ``HADAMARD_FX_DUMP=dir``: a file per pass, and what it changed as a diff."""

from __future__ import annotations

import difflib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.fx as fx

from hadamard_fx.plan import Plan

from .joint_graph import module_of

__all__ = ["VARIABLE", "Dump", "graph_text", "plan_text"]

VARIABLE = "HADAMARD_FX_DUMP"

_LOG = logging.getLogger(__package__)
_SHORT = {"float": "f", "bfloat": "bf", "int": "i", "uint": "u", "complex": "c"}


def graph_text(graph: fx.Graph) -> str:
    """One line per node: ``mm: f32[64, 16] = aten.mm(view, permute)  # blocks.0.fc``."""
    return "\n".join(map(_line, graph.nodes)) + "\n"


def _line(node: fx.Node) -> str:
    module = module_of(node)
    comment = f"  # {module}" if module else ""
    if node.op == "placeholder":
        return f"{node.name}: {_type(node)} = input{comment}"
    if node.op == "output":
        return f"return {node.args[0]}"
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    if isinstance(node.target, torch._ops.OpOverload):
        target = str(node.target).removesuffix(".default")
    arguments = [str(argument) for argument in node.args] + [f"{key}={value}" for key, value in node.kwargs.items()]
    return f"{node.name}: {_type(node)} = {target}({', '.join(arguments)}){comment}"


def _type(node: fx.Node) -> str:
    return _type_of(node.meta.get("val"))


def _type_of(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_type_of, value))})"
    if not isinstance(value, torch.Tensor):
        return type(value).__name__ if value is not None else "?"
    name = str(value.dtype).removeprefix("torch.")
    kind = name.rstrip("0123456789")
    return f"{_SHORT.get(kind, kind)}{name[len(kind) :]}[{', '.join(map(str, value.shape))}]"


def plan_text(plan: Plan | None) -> str:
    """One line per decision: ``mm_3 grad_weight of blocks.0.fc, 64×16×256: exact (profile 'hot' asks for it)``."""
    lines = []
    for decision in plan.decisions if plan else ():
        gemm = decision.gemm
        lines.append(f"{gemm.node} {gemm.role} of {gemm.layer}, {gemm.shape()}: {decision.scheme} ({decision.reason})")
    return "".join(line + "\n" for line in lines)


@dataclass
class Dump:
    """The files of one compilation: ``00-start.joint.txt``, ``01-find.joint.txt``, ``02-choose.joint.diff``, …

    A pass that changed nothing leaves its text, and no diff.

    Attributes:
        folder: of this compilation, ``<dir>/graph-0``.
        number: of the next file.
        last: graph -> the text behind the pass before.
    """

    folder: Path
    number: int
    last: dict[str, str]

    @staticmethod
    def wanted() -> bool:
        """Whether ``$HADAMARD_FX_DUMP`` is set."""
        return bool(os.environ.get(VARIABLE, "").strip())

    @classmethod
    def from_environment(cls) -> Dump | None:
        """A new folder below ``$HADAMARD_FX_DUMP``; None where that is not set, or cannot be written."""
        parent = os.environ.get(VARIABLE, "").strip()
        if not parent:
            return None
        number = 0
        while True:
            folder = Path(parent) / f"graph-{number}"
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                if not Path(parent).is_dir():
                    break
                number += 1
            except OSError:
                break
            else:
                return cls(folder, 0, {})
        _LOG.warning("%s=%s cannot be written; nothing is dumped", VARIABLE, parent)
        return None

    def write(self, name: str, part: str, graph: fx.Graph, plan: Plan | None) -> None:
        """The state behind pass ``name`` on the graph ``part``, and how it differs from the one before."""
        text = "\n".join(filter(None, (plan_text(plan), graph_text(graph))))
        before, self.last[part] = self.last.get(part), text
        stem = f"{self.number:02}-{name}.{part}"
        self.number += 1
        (self.folder / f"{stem}.txt").write_text(text, encoding="utf-8")
        if before is not None and before != text:
            lines = difflib.unified_diff(
                before.splitlines(keepends=True), text.splitlines(keepends=True), "before", f"after {name}"
            )
            (self.folder / f"{stem}.diff").write_text("".join(lines), encoding="utf-8")
