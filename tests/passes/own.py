"""Passes to test with, and a network to run them on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from harness import FINE, Trace, gradients, traced
from torch import nn

import hadamard_fx
from hadamard_fx.errors import (
    HadamardError,
)
from hadamard_fx.passes.editing import GraphEditor
from hadamard_fx.passes.joint_graph import JointGraph
from hadamard_fx.plan import Exact, Plan

aten = torch.ops.aten


class Keep(hadamard_fx.Pass):
    """No gradient of an input is rewritten."""

    role: str = "grad_input"

    def decide(self, plan: Plan, joint: JointGraph) -> Plan:
        kept = [replace(d, scheme=Exact(), reason="kept") if d.gemm.role == self.role else d for d in plan.decisions]
        return replace(plan, decisions=tuple(kept))


class Count(hadamard_fx.Pass):
    def observe(self, joint: JointGraph, plan: Plan) -> dict[str, Any]:
        return {"nodes": len(joint.graph.nodes)}


class Relabel(hadamard_fx.Pass):
    """tanh(x) ⇒ −tanh(−x): the same value by other nodes."""

    def rewrite(self, joint: JointGraph, plan: Plan) -> None:
        editor = GraphEditor(joint, frozenset())
        for node in joint.graph.find_nodes(op="call_function", target=aten.tanh.default):
            with joint.graph.inserting_before(node):
                made = editor.inline(lambda x: -torch.tanh(-x), (node.args[0],), node, backward=False)
            node.replace_all_uses_with(made)
            joint.graph.erase_node(node)


class Network(nn.Module):
    """Its forward stands here, so that the nodes know a line of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(24, 40), nn.Linear(40, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(x).tanh()
        return self.last(hidden)


def network() -> nn.Module:
    torch.manual_seed(0)
    return Network()


def compiled(**passes: Any) -> tuple[dict[str, torch.Tensor], Trace]:
    module = network()
    function, trace = traced(module, {**FINE, "passes": {name.replace("_", "-"): v for name, v in passes.items()}})
    return gradients(function, module, torch.randn(50, 24, generator=torch.Generator().manual_seed(1))), trace


def failing(**passes: Any) -> HadamardError:
    with pytest.raises(Exception, match="raised") as raised:
        compiled(**passes)
    found = getattr(raised.value, "inner_exception", raised.value)
    assert isinstance(found, HadamardError), found
    return found
