"""One product under one scheme, run on tensors at hand: what the rewrite would make of it in the user's graph.

A graph that holds nothing but the product is rewritten by the scheme's own rule and interpreted, so that whatever can
be compiled can be measured, schemes of others included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.fx as fx

from hadamard_fx import compat
from hadamard_fx.plan import Cost, Decision, Gemm, Plan, Role, Scheme, Size

from .joint_graph import GraphInput, JointGraph
from .rewrite import RewriteGemms

__all__ = ["single_product"]

aten = torch.ops.aten


def single_product(
    scheme: Scheme, gemm: Gemm, left: torch.Tensor, right: torch.Tensor
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The product as a function of its operands, [M, K] and [K, N], in the dtype of the operands.

    Args:
        scheme: refined for the device, and legal for the product.
        gemm: its role and the side of its gradient count, the sizes do not.
        left, right: examples, whose sizes, dtypes and devices every call must have.
    """
    graph, mode = fx.Graph(), compat.fresh_fake_mode(())
    names = {"left": "left", "right": "right"}
    if gemm.gradient:
        names[gemm.gradient] = f"tangents_{gemm.gradient}"
    nodes = []
    for position, (side, operand) in enumerate((("left", left), ("right", right))):
        node = graph.placeholder(names[side])
        node.meta["val"] = mode.from_tensor(operand.detach())
        node.meta["desc"] = compat.input_descriptor(position)
        nodes.append(node)
    product = graph.call_function(aten.mm.default, tuple(nodes))
    with mode:
        product.meta["val"] = torch.mm(nodes[0].meta["val"], nodes[1].meta["val"])
    graph.output((product,))
    joint = JointGraph(graph, _inputs(gemm))
    module = fx.GraphModule({}, graph)
    joint.graph = module.graph
    (node,) = module.graph.find_nodes(op="call_function", target=aten.mm.default)
    (m, k), n = left.shape, right.shape[1]
    alone = replace(gemm, node=node.name, op="mm", left=names["left"], right=names["right"], batch=Size(1), window=None)
    alone = replace(alone, M=Size(m), N=Size(n), K=Size(k))
    decision = Decision(alone, scheme, Cost(0.0), Cost(0.0), "to be measured")
    if decision.rewritten:
        RewriteGemms(Plan((decision,))).rewrite(joint)
        module.recompile()

    def run(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            result: torch.Tensor = module(left, right)[0]
        return result

    return run


def _inputs(gemm: Gemm) -> tuple[GraphInput, GraphInput]:
    """In a forward one operand is the layer's weight; in a backward product it does not matter which tensor it is."""
    data, weight = GraphInput("", False, True), GraphInput("weight", True, True)
    if gemm.role is not Role.FORWARD:
        return data, data
    return (weight, data) if gemm.weight and gemm.left.startswith(gemm.weight) else (data, weight)
