"""A chain of pointwise producers: the nodes between a tensor y and the leaves that a kernel would read instead of y."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import torch
import torch.fx as fx

from .joint_graph import CASTS, RESHAPES, VIEWS, strip_views, value
from .pointwise import DTYPES, INTEGERS, is_pointwise, keeps_elements

__all__ = ["LONGEST", "Chain", "is_extern", "kind_of", "readers", "row_views", "size"]

LONGEST = 64
"""Nodes of a chain: a kernel that computes more on each element is no longer limited by bytes."""

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")
_FAMILIES = ("_scaled_", "_int_mm", "_flash_attention", "_efficient_attention", "_cudnn", "_fused")


def is_extern(node: fx.Node) -> bool:
    """A kernel of its own, which reads and writes memory: Inductor generates no code for it."""
    if node.op in ("placeholder", "get_attr", "output"):
        return True
    if node.target is operator.getitem:
        return is_extern(node.all_input_nodes[0])
    if not isinstance(node.target, torch._ops.OpOverload):
        return True
    namespace, name = node.target.namespace, str(node.target).split(".")[1]
    return namespace not in ("aten", "prims") or name in _PRODUCTS or name.startswith(_FAMILIES)


def size(node: fx.Node) -> int:
    """Bytes of a tensor."""
    return math.prod(int(extent) for extent in value(node).shape) * value(node).dtype.itemsize


def row_views(node: fx.Node) -> fx.Node:
    """The node below views that keep the order of the elements and the last axis."""
    while node.target in RESHAPES and keeps_elements(node):
        node = node.all_input_nodes[0]
    return node


def readers(node: fx.Node) -> Iterator[fx.Node]:
    """Everything that reads ``node`` or such a view of it, and that somebody needs."""
    views = [node]
    for view in views:
        for user in view.users:
            if user.target in RESHAPES and keeps_elements(user):
                views.append(user)
            elif user.users or user.op == "output" or is_extern(user):
                yield user


def kind_of(node: fx.Node, shape: tuple[int, int]) -> str | None:
    """What ``node`` is to a tensor [L, C], one of ``prologue.KINDS``; None for what is none of them."""
    tensor = node.meta.get("val")
    if not isinstance(tensor, torch.Tensor) or tensor.dtype not in DTYPES | INTEGERS:
        return None
    if not all(isinstance(extent, int) for extent in tensor.shape):
        return None
    length, channels = shape
    elements, last = tensor.numel(), tensor.shape[-1] if tensor.dim() else 1
    if last == channels:
        return {length * channels: "tile", channels: "column"}.get(elements)
    return {length: "row", 1: "scalar"}.get(elements) if last == 1 else None


@dataclass
class Chain:
    """The pointwise nodes above ``root``, in graph order, and what they read.

    Attributes:
        root: y.
        shape: [L, C] of y.
        ends: nodes that are leaves whatever they are; the root may be among them.
        nodes, leaves: of the chain; where the root itself is not pointwise there are no nodes, and it is the leaf.
        inside: the nodes of all chains of the graph.
        too_long: there are more than ``LONGEST``, and none is taken in.
    """

    root: fx.Node | None = None
    shape: tuple[int, int] = (0, 0)
    ends: frozenset[fx.Node] = frozenset()
    nodes: tuple[fx.Node, ...] = ()
    leaves: tuple[fx.Node, ...] = ()
    inside: frozenset[fx.Node] = field(default=frozenset(), repr=False)
    too_long: bool = False

    @classmethod
    def of(cls, root: fx.Node, shape: tuple[int, int], ends: frozenset[fx.Node]) -> Self:
        """As long as it can be."""
        chain = cls(root, shape, ends)
        chain._collect()
        return chain

    def _collect(self) -> None:
        """Walk up from the root to the ends and to what is not pointwise."""
        assert self.root is not None
        nodes: set[fx.Node] = set()
        leaves: set[fx.Node] = set()
        stack = [self.root]
        while stack:
            node = stack.pop()
            if node in nodes or node in leaves:
                continue
            if (node is self.root or node not in self.ends) and self._absorbs(node):
                nodes.add(node)
                stack += node.all_input_nodes
            else:
                leaves.add(node)
        self.too_long = len(nodes) > LONGEST
        if self.too_long:
            nodes, leaves = set(), {self.root}
        self.nodes, self.leaves = tuple(sorted(nodes)), tuple(sorted(leaves))

    def _absorbs(self, node: fx.Node) -> bool:
        device = value(self.root).device if self.root is not None else None
        operands = node.all_input_nodes
        return is_pointwise(node) and all(
            kind_of(operand, self.shape) is not None and value(operand).device == device for operand in operands
        )

    def prune(self, inside: frozenset[fx.Node]) -> bool:
        """Make leaves of the nodes that somebody outside of all chains reads, too; returns whether there were any."""
        self.inside = inside
        cut = {node for node in self.nodes if node is not self.root and self._is_better_read(node)}
        if cut:
            self.ends |= cut
            self._collect()
        return bool(cut)

    def _is_better_read(self, node: fx.Node) -> bool:
        """Others force it to memory, and reading it costs less than reading what it is made of."""
        if kind_of(node, self.shape) != "tile" or not self._read_outside(node):
            return False
        made_of = [leaf for leaf in self._leaves_of(node) if kind_of(leaf, self.shape) == "tile"]
        return sum(size(leaf) for leaf in made_of) > size(node)

    def _read_outside(self, node: fx.Node) -> bool:
        return any(user not in self.inside for user in node.users if user.users or is_extern(user))

    def _leaves_of(self, node: fx.Node) -> set[fx.Node]:
        found: set[fx.Node] = set()
        stack, seen = [node], set[fx.Node]()
        while stack:
            current = stack.pop()
            if current in seen:
                continue
            seen.add(current)
            if current in self.leaves:
                found.add(current)
            else:
                stack += current.all_input_nodes
        return found

    def extra_bytes(self, leaf: fx.Node, sharing: int) -> float:
        """What it costs to read a leaf, beyond what it costs where Inductor computes y itself.

        Args:
            leaf: one of ``leaves``.
            sharing: how many chains read it; Inductor would read it once for all of them.
        """
        if kind_of(leaf, self.shape) != "tile":
            return 0.0
        outside = [user for user in readers(row_views(leaf)) if user not in self.inside]
        if self._lies_in_memory(leaf):
            others = any(not is_extern(user) for user in outside)  # they read it, and make y on the way
            return size(leaf) * (1 - (0 if others else 1 / sharing))
        return size(leaf) * (1 if outside else 1 + 1 / sharing)

    def _lies_in_memory(self, leaf: fx.Node) -> bool:
        return is_extern(strip_views(leaf)) and value(leaf).is_contiguous()

    def names(self) -> tuple[str, ...]:
        """What the user's code calls the computation: ``("gelu_backward",)``."""
        named = [node for node in self.nodes if node.target not in VIEWS]
        named = [node for node in named if node.target not in CASTS] or named
        origins: list[Any] = [node.meta.get("original_aten") or node.target for node in named]
        return tuple(dict.fromkeys(str(origin).split(".")[1].strip("_") for origin in origins))
