"""A pass of one's own: leave the first and the last layers exact.

The first layer sees the data and the last one makes the result; where low precision costs accuracy, it is mostly there
(every paper that trains in 4 bits leaves them out). ``docs/writing-a-pass.md`` builds this file step by step.
"""

from __future__ import annotations

from dataclasses import replace

import hadamard_fx
from hadamard_fx.passes.joint_graph import JointGraph
from hadamard_fx.plan import Decision, Exact, Plan, Role


@hadamard_fx.register_pass(after="choose")
class KeepEndsExact(hadamard_fx.Pass):
    """Exact products in the first and the last ``count`` layers, in the order in which the forward runs them."""

    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count must not be negative, got {self.count}")

    def decide(self, plan: Plan, joint: JointGraph) -> Plan:
        layers = list(dict.fromkeys(d.gemm.layer for d in plan.decisions if d.gemm.role is Role.FORWARD))
        ends = {*layers[: self.count], *layers[max(len(layers) - self.count, 0) :]}

        def keep(decision: Decision) -> Decision:
            if not decision.rewritten or decision.gemm.layer not in ends:
                return decision
            return replace(decision, scheme=Exact(), reason="an end of the network")

        return replace(plan, decisions=tuple(map(keep, plan.decisions)))
