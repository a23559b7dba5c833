"""Let compiled code hold only for the sizes that its decisions are good for.

A dynamic size is judged by its hint. Where a scheme is legal from some length of the contraction on, code that was
decided for a shorter one must not serve the longer ones too, nor the other way round: those are compiled anew.
"""

from __future__ import annotations

import torch
import torch.fx as fx

from hadamard_fx import compat
from hadamard_fx.plan import Plan, Role
from hadamard_fx.scheme import Exact

from .convolutions import GRADIENTS, Convolution, is_convolution
from .find_gemms import LEFT_OPERAND, operands
from .joint_graph import JointGraph, value
from .rule import rule_of

__all__ = ["guard_sizes"]


def guard_sizes(joint: JointGraph, plan: Plan) -> None:
    """Guard the contracted extent of every product by the bounds of the schemes that were considered for it."""
    nodes = {node.name: node for node in joint.graph.nodes}
    for decision in plan.decisions:
        if not decision.gemm.K.symbol:
            continue
        considered = (decision.scheme, *(candidate.scheme for candidate in decision.rejected))
        bounds = {rule_of(s).least_contracted(s) for s in considered if not isinstance(s, Exact)} - {0}
        for bound in sorted(bounds):
            compat.guard_side(_contracted(nodes[decision.gemm.node]), bound)


def _contracted(node: fx.Node) -> int | torch.SymInt:
    """K of a product's node."""
    if node.target in LEFT_OPERAND:
        return value(operands(node)[0]).shape[-1]
    call = node if is_convolution(node) else node.all_input_nodes[0]
    role = Role.FORWARD if call is node else GRADIENTS[node.args[1]]  # type: ignore[index]
    return Convolution.of(call).sizes(role)[2]
