"""How much memory the tensors of a graph take while it runs, node by node, in the order of the graph.

A tensor lives from the node that makes it until its last reader. Inductor computes pointwise operations in the kernel
that reads them, a reduction for instance: such a node takes no memory of its own unless a kernel that Inductor does not
generate, or the caller, reads it; and what it reads lives until its reader runs. Weights live anyway and do not count.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.fx as fx

from .chains import is_extern, size
from .joint_graph import VIEWS, JointGraph, value

__all__ = ["live_bytes", "peak_bytes"]


def peak_bytes(joint: JointGraph) -> int:
    """The most that lives at a time."""
    return max(live_bytes(joint).values(), default=0)


def live_bytes(joint: JointGraph) -> dict[fx.Node, int]:
    """Node -> bytes of all tensors that live while it runs, its results among them."""
    nodes = list(joint.graph.nodes)
    place = {node: number for number, node in enumerate(nodes)}
    last = {node: place[node] for node in nodes}
    for node in nodes:
        if _is_kernel(node):
            for read in _stored_reads(node):
                last[read] = max(last[read], place[node])
    change = [0] * (len(nodes) + 1)
    for node in nodes:
        if _is_stored(node) and not (node.op == "placeholder" and joint.facts(node).parameter):
            change[_birth(node, place)] += size(node)
            change[last[node] + 1] -= size(node)
    live, total = {}, 0
    for node, difference in zip(nodes, change, strict=False):
        total += difference
        live[node] = total
    return live


def _birth(node: fx.Node, place: dict[fx.Node, int]) -> int:
    """Inputs are there from the start; results of a call with several are made by the call."""
    if node.op == "placeholder":
        return 0
    return place[node.all_input_nodes[0] if _is_part(node) else node]


def _is_part(node: fx.Node) -> bool:
    return len(node.all_input_nodes) == 1 and isinstance(node.all_input_nodes[0].meta.get("val"), tuple | list)


def _is_stored(node: fx.Node) -> bool:
    """It has memory of its own."""
    if not isinstance(node.meta.get("val"), torch.Tensor) or node.target in VIEWS:
        return False
    if not all(isinstance(extent, int) for extent in value(node).shape):
        return False
    return bool(node.users) and _is_kernel(node)


def _is_kernel(node: fx.Node) -> bool:
    """It is a kernel, or the end of one that Inductor generates."""
    return is_extern(node) or _reduces(node) or any(is_extern(reader) for reader in _readers(node))


def _reduces(node: fx.Node) -> bool:
    """Its result is smaller than what it reads: others wait until it is done."""
    made = node.meta.get("val")
    if not isinstance(made, torch.Tensor) or node.target in VIEWS:
        return False
    read = [operand.meta.get("val") for operand in node.all_input_nodes]
    return any(isinstance(x, torch.Tensor) and x.numel() > made.numel() for x in read)


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """Whoever reads it or a view of it."""
    for user in node.users:
        if user.target in VIEWS:
            yield from _readers(user)
        else:
            yield user


def _stored_reads(node: fx.Node) -> Iterator[fx.Node]:
    """What lies in memory and is read when ``node`` runs, through views and what is computed on the way."""
    seen = set(node.all_input_nodes)
    pending = list(seen)
    while pending:
        read = pending.pop()
        if _is_stored(read):
            yield read
        if read.target in VIEWS or not _is_kernel(read):
            fresh = set(read.all_input_nodes) - seen
            seen |= fresh
            pending += fresh
