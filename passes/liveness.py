"""How much memory the tensors of a graph take while it runs, node by node, in the order of the graph.

A tensor lives from the node that makes it until its last reader. Inductor computes pointwise operations in the kernel
that reads them, a reduction for instance: such a node takes no memory of its own unless a kernel that Inductor does not
generate, or the caller, reads it; and what it reads lives until its reader runs. Weights live anyway and do not count.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
import torch.fx as fx

from .chains import is_extern, size
from .joint_graph import VIEWS, JointGraph

__all__ = ["live_bytes", "peak_bytes"]

aten = torch.ops.aten

_PARTS = frozenset({aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int})
_WINDOWS = frozenset({aten.slice.Tensor, aten.select.int, aten.squeeze.default, aten.as_strided.default, *_PARTS})
"""Views of a part of the memory."""


def peak_bytes(joint: JointGraph) -> int:
    """The most that lives at a time."""
    return max(live_bytes(joint).values(), default=0)


def live_bytes(joint: JointGraph) -> dict[fx.Node, int]:
    """Node -> bytes of all tensors that live while it runs, its results among them. Every node is looked at once."""
    nodes = list(joint.graph.nodes)
    place = {node: number for number, node in enumerate(nodes)}
    stored, kernels = _stored(nodes)
    weights = {node for node in nodes if node.op == "placeholder" and joint.facts(node).parameter}
    last = dict(place)
    waiting: dict[fx.Node, set[fx.Node]] = {}  # what lies in memory and is read when a reader of the node runs
    for node in nodes:
        reads: set[fx.Node] = set()
        for operand in node.all_input_nodes:
            reads |= waiting[operand]
        if node in kernels:
            for read in reads:
                last[read] = place[node]
        if node in stored:
            waiting[node] = {node}
        else:
            waiting[node] = set() if node in kernels else reads
    change = [0] * (len(nodes) + 1)
    for node in stored - weights:
        change[_birth(node, place)] += size(node)
        change[last[node] + 1] -= size(node)
    live, total = {}, 0
    for node, difference in zip(nodes, change, strict=False):
        total += difference
        live[node] = total
    return live


def _stored(nodes: Iterable[fx.Node]) -> tuple[set[fx.Node], set[fx.Node]]:
    """Nodes that have memory of their own, and those that are a kernel, or the end of one that Inductor generates."""
    outside: dict[fx.Node, bool] = {}  # read, perhaps through views, by what Inductor does not generate
    kernels, stored = set(), set()
    for node in reversed(list(nodes)):
        outside[node] = any(outside[user] if _is_window(user) else is_extern(user) for user in node.users)
        if _is_window(node):
            continue
        if is_extern(node) or outside[node] or _reduces(node):
            kernels.add(node)
            if node.users and _has_known_size(node):
                stored.add(node)
    return stored, kernels


def _is_window(node: fx.Node) -> bool:
    """It shows the memory of another node, or a part of it."""
    if node.target is operator.getitem:
        return node.all_input_nodes[0].target in _PARTS
    return node.target in VIEWS or node.target in _WINDOWS


def _has_known_size(node: fx.Node) -> bool:
    tensor = node.meta.get("val")
    return isinstance(tensor, torch.Tensor) and all(isinstance(extent, int) for extent in tensor.shape)


def _birth(node: fx.Node, place: dict[fx.Node, int]) -> int:
    """Inputs are there from the start; results of a call with several are made by the call."""
    if node.op == "placeholder":
        return 0
    return place[node.all_input_nodes[0] if node.target is operator.getitem else node]


def _reduces(node: fx.Node) -> bool:
    """Its result is smaller than what it reads: others wait until it is done."""
    if not _has_known_size(node):
        return False
    made = node.meta["val"].numel()
    return any(_has_known_size(operand) and operand.meta["val"].numel() > made for operand in node.all_input_nodes)
