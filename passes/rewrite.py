"""Replace every product that the plan rewrites by what its scheme's rule builds; convolutions are unfolded first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hadamard_fx.plan import Plan

from .editing import GraphEditor
from .joint_graph import JointGraph
from .rule import rule_of
from .unfold_convolutions import UnfoldConvolutions


@dataclass(frozen=True)
class RewriteGemms:
    """Plan × joint graph ⇒ joint graph with ``hadamard::*`` ops in place of the chosen products."""

    name: ClassVar[str] = "rewrite-gemms"
    plan: Plan

    def rewrite(self, joint: JointGraph) -> None:
        """Edit the graph in place; nodes that the plan leaves alone are not touched."""
        decisions = self.plan.rewrites()
        joint = UnfoldConvolutions(decisions).rewrite(joint)
        by_name = {node.name: node for node in joint.graph.nodes}
        counters = self.plan.digest() if self.plan.counts_saturation else ""
        editor = GraphEditor(joint, frozenset(d.gemm.node for d in decisions), counters)
        _ = joint.tangent_closure, joint.parameters_of  # of the graph as it was before the first edit
        for decision in decisions:
            node = by_name[decision.gemm.node]
            editor.product = node.name
            with joint.graph.inserting_before(node):
                product = rule_of(decision.scheme).rewrite(decision.scheme, node, editor)
            node.replace_all_uses_with(product)
            joint.graph.erase_node(node)
        joint.graph.lint()
