"""Split a joint graph so that the compressed activations, and not what they were made from, are kept for the backward.

Plain min-cut would keep x, or rebuild it, wherever that looks cheap. Here the compressed activations are presented to
it as results of the forward, which it must keep, and are taken out of the results again afterwards (HOT, section 3:
ABC).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx

from hadamard_fx import compat

from .editing import SAVE
from .joint_graph import JointGraph, module_of, strip_views

Partitioner = Callable[..., tuple[fx.GraphModule, fx.GraphModule]]


@dataclass(frozen=True)
class SavedTensor:
    """One tensor that the forward keeps for the backward."""

    node: str
    bytes: int
    layer: str = ""


def partition(
    joint: fx.GraphModule, joint_inputs: Any, inner: Partitioner, *, num_fwd_outputs: int, **kwargs: Any
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Forward and backward graph of a joint graph.

    Args:
        joint: after all joint passes.
        inner: the partitioner that decides on everything else, Inductor's min-cut or the user's own.
        num_fwd_outputs: results of the forward among the joint graph's outputs.
    """
    kept = _compressed(joint)
    _insert_outputs(joint, kept, num_fwd_outputs)
    forward, backward = inner(joint, joint_inputs, num_fwd_outputs=num_fwd_outputs + len(kept), **kwargs)
    _remove_outputs(forward, num_fwd_outputs, len(kept))
    return forward, backward


def saved_tensors(joint: JointGraph, num_fwd_outputs: int) -> tuple[SavedTensor, ...]:
    """What a partitioned forward keeps, each tensor once.

    Args:
        joint: the forward graph with the facts of its inputs. An input counts if it has a gradient of its own: an
            activation of an earlier graph, which lives only because it is kept.
    """
    (outputs,) = _output(joint.graph).args
    seen: dict[str, SavedTensor] = {}
    for node in list(outputs)[num_fwd_outputs:]:  # type: ignore[arg-type]
        if isinstance(node, fx.Node) and isinstance(node.meta.get("val"), torch.Tensor):
            memory = strip_views(node)
            facts = joint.facts(memory) if memory.op == "placeholder" else None
            if facts is None or (facts.requires_grad and not facts.parameter):
                seen[memory.name] = SavedTensor(memory.name, _bytes(memory.meta["val"]), module_of(memory))
    return tuple(seen.values())


def _bytes(tensor: torch.Tensor) -> int:
    return math.prod(compat.lookup_hint(extent) for extent in tensor.shape) * tensor.dtype.itemsize


def _compressed(joint: fx.GraphModule) -> list[fx.Node]:
    """What is to be kept: the results of ops with several, and single tensors."""
    kept: list[fx.Node] = []
    for node in joint.graph.nodes:
        if node.meta.get(SAVE) and not _is_part(node):
            kept += [node] if isinstance(node.meta["val"], torch.Tensor) else node.users
    return kept


def _is_part(node: fx.Node) -> bool:
    """A ``getitem`` inherits its op's meta; only the op itself is meant."""
    return not isinstance(node.target, torch._ops.OpOverload)


def _output(graph: fx.Graph) -> fx.Node:
    (output,) = graph.find_nodes(op="output")
    result: fx.Node = output
    return result


def _insert_outputs(joint: fx.GraphModule, nodes: list[fx.Node], position: int) -> None:
    _splice(joint, position, 0, nodes)


def _remove_outputs(forward: fx.GraphModule, position: int, count: int) -> None:
    _splice(forward, position, count, [])


def _splice(gm: fx.GraphModule, position: int, removed: int, added: list[fx.Node]) -> None:
    output = _output(gm.graph)
    values = list(output.args[0])  # type: ignore[arg-type]
    values[position : position + removed] = added
    output.args = (tuple(values) if isinstance(output.args[0], tuple) else values,)
    if "desc" in output.meta:
        descriptors = list(output.meta["desc"])
        # the descriptors of what is kept are dropped with the outputs themselves: any will do
        descriptors[position : position + removed] = [compat.placeholder_descriptor(i) for i in range(len(added))]
        output.meta["desc"] = descriptors
    gm.graph.lint()
    gm.recompile()
