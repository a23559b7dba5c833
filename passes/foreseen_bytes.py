"""What the forward would keep for the backward under a plan, counted on a copy of the joint graph: a dry run.

The copy is rewritten and partitioned as the graph itself will be, so that the bytes of static shapes are those that are
counted in the end. Decisions that a pass of somebody else changes later are not foreseen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx

from hadamard_fx import compat
from hadamard_fx.plan import Decision, Plan

from .joint_graph import JointGraph
from .partition import partition, saved_tensors
from .rewrite import RewriteGemms

__all__ = ["ForeseenBytes", "copy_of"]


@dataclass(frozen=True)
class ForeseenBytes:
    """Counts on copies of a joint graph, which it leaves as it is."""

    joint: JointGraph

    def kept(self, decisions: tuple[Decision, ...], activation_budget: float = 1.0) -> int:
        """Bytes that the forward keeps under these decisions; products without one stay exact."""
        module = copy_of(self.joint.graph)
        copy = JointGraph(module.graph, self.joint.inputs)
        count = _forward_results(copy)
        plan = Plan(decisions)
        if plan.rewrites():
            RewriteGemms(plan).rewrite(copy)
            module.recompile()
        inputs = module.graph.find_nodes(op="placeholder")
        weights = [number for number, node in enumerate(inputs) if copy.facts(node).parameter]
        if _has_symbols(module.graph):  # torch cannot rebuild activations of dynamic shapes reliably
            activation_budget = 1.0
        with compat.activation_budget(activation_budget):
            forward, _ = partition(
                module, (), compat.exact_partition, num_fwd_outputs=count, static_lifetime_input_indices=weights
            )
        return sum(tensor.bytes for tensor in saved_tensors(JointGraph(forward.graph, copy.inputs), count))


def _has_symbols(graph: fx.Graph) -> bool:
    values = (node.meta.get("val") for node in graph.nodes)
    return any(
        isinstance(value, torch.SymInt)
        or (isinstance(value, torch.Tensor) and not all(isinstance(extent, int) for extent in value.shape))
        for value in values
    )


def _forward_results(joint: JointGraph) -> int:
    """How many of the outputs are results of the forward; the gradients follow them, None where an input has none."""
    (output,) = joint.graph.find_nodes(op="output")
    results: list[Any] = list(output.args[0])
    descriptors = output.meta.get("desc") or [None] * len(results)
    for place, (result, descriptor) in enumerate(zip(results, descriptors, strict=True)):
        if result is None or result in joint.tangent_closure or compat.is_gradient(descriptor):
            return place
    return len(results)


def copy_of(graph: fx.Graph) -> fx.GraphModule:
    """A graph module of its own, to be edited beside the graph."""
    copy = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    outputs = copy.graph_copy(graph, values)
    copy.output(outputs)
    next(iter(reversed(copy.nodes))).meta = dict(next(iter(reversed(graph.nodes))).meta)
    owner = graph.owning_module
    return fx.GraphModule(owner if owner is not None else {}, copy)
