"""Let compiled code hold only for the sizes that its decisions are good for.

A dynamic size is judged by its hint. Where a scheme is legal from some length of the contraction on, code that was
decided for a shorter one must not serve the longer ones too, nor the other way round: those are compiled anew.
"""

from __future__ import annotations

from hadamard_fx import compat
from hadamard_fx.plan import Plan
from hadamard_fx.scheme import Exact

from .find_gemms import operands
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
        left, _ = operands(nodes[decision.gemm.node])
        for bound in sorted(bounds):
            compat.guard_side(value(left).shape[-1], bound)
