"""The joint graph before and after the passes, as plain records: for pictures of what became of a product."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.fx as fx

from .editing import PRODUCT

__all__ = ["GraphRecord", "NodeRecord", "record_nodes"]


@dataclass(frozen=True)
class NodeRecord:
    """One node.

    Attributes:
        name: unique within its graph.
        op: ``"aten.mm"``, or ``"placeholder"`` and the like.
        inputs: names of the nodes that it reads.
        value: dtype and shape of the result, ``"float32[64, 10]"``; ``""`` where it is no tensor.
        product: name of the product whose decision built the node, ``""`` for all others.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    value: str = ""
    product: str = ""

    def to_json(self) -> list[Any]:
        """A list and not a table: a graph has thousands of them."""
        return [self.name, self.op, list(self.inputs), self.value, self.product]

    @classmethod
    def from_json(cls, data: list[Any]) -> Self:
        name, op, inputs, value, product = data
        return cls(name, op, tuple(inputs), value, product)


@dataclass(frozen=True)
class GraphRecord:
    """All nodes of a joint graph, in order, before and after the passes that edit it."""

    before: tuple[NodeRecord, ...]
    after: tuple[NodeRecord, ...]

    def to_json(self) -> dict[str, Any]:
        return {"before": [n.to_json() for n in self.before], "after": [n.to_json() for n in self.after]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        before, after = (tuple(map(NodeRecord.from_json, data[key])) for key in ("before", "after"))
        return cls(before, after)


def record_nodes(graph: fx.Graph) -> tuple[NodeRecord, ...]:
    """Every node of a graph but its output."""
    return tuple(_record(node) for node in graph.nodes if node.op != "output")


def _record(node: fx.Node) -> NodeRecord:
    inputs = tuple(operand.name for operand in node.all_input_nodes)
    return NodeRecord(node.name, _op(node), inputs, _value(node), node.meta.get(PRODUCT, ""))


def _op(node: fx.Node) -> str:
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target).removesuffix(".default")
    return "getitem" if node.target is operator.getitem else getattr(node.target, "__name__", node.op)


def _value(node: fx.Node) -> str:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return ""
    return f"{str(value.dtype).removeprefix('torch.')}[{', '.join(map(str, value.shape))}]"
