"""Each law is broken on purpose and must say so: the law, the pass, the node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.fx as fx
from harness import FINE, gradients, traced
from torch import nn

from hadamard_fx import compat
from hadamard_fx.errors import LawViolation
from hadamard_fx.kernels.library import load
from hadamard_fx.passes.joint_graph import JointGraph
from hadamard_fx.passes.laws import LAWS, enforce
from hadamard_fx.passes.manager import Pipeline
from hadamard_fx.plan import Plan, Role

aten = torch.ops.aten
Spoil = Callable[[fx.Graph, Plan], Plan]


def first(graph: fx.Graph, target: object) -> fx.Node:
    return next(node for node in graph.nodes if node.target is target)


def second_decision(graph: fx.Graph, plan: Plan) -> Plan:
    return replace(plan, decisions=(*plan.decisions, plan.decisions[0]))


def no_decision(graph: fx.Graph, plan: Plan) -> Plan:
    return replace(plan, decisions=tuple(d for d in plan.decisions if d.gemm.role is not Role.FORWARD))


def low_rank_on_grad_input(graph: fx.Graph, plan: Plan) -> Plan:
    scheme = next(d.scheme for d in plan.decisions if d.gemm.role is Role.GRAD_WEIGHT)
    swapped = [replace(d, scheme=scheme) if d.gemm.role is Role.GRAD_INPUT else d for d in plan.decisions]
    return replace(plan, decisions=tuple(swapped))


def compressed_parameter(graph: fx.Graph, plan: Plan) -> Plan:
    compressed = first(graph, load()["compress_tokens"].op)
    weight = next(node for node in graph.nodes if node.op == "placeholder")
    compressed.args = (weight, *compressed.args[1:])
    return plan


def reads_what_comes_later(graph: fx.Graph, plan: Plan) -> Plan:
    product = first(graph, load()["quantized_mm"].op)
    graph.find_nodes(op="output")[0].prepend(next(iter(product.all_input_nodes)))
    return plan


def illegal_scheme(graph: fx.Graph, plan: Plan) -> Plan:
    scheme = next(d.scheme for d in plan.decisions if d.gemm.role is Role.GRAD_INPUT)
    swapped = [replace(d, scheme=scheme) if d.gemm.role is Role.GRAD_WEIGHT else d for d in plan.decisions]
    return replace(plan, decisions=tuple(swapped))


def scales_swapped(graph: fx.Graph, plan: Plan) -> Plan:
    product = first(graph, load()["quantized_mm"].op)
    a, b, scale_a, scale_b, *rest = product.args
    product.args = (a, b, scale_b, scale_a, *rest)
    return plan


def other_order(graph: fx.Graph, plan: Plan) -> Plan:
    weight = first(graph, load()["quantize_weight"].op)
    weight.args = (weight.args[0], 32, *weight.args[2:])
    return plan


def wrong_value(graph: fx.Graph, plan: Plan) -> Plan:
    product = first(graph, load()["quantized_mm"].op)
    product.meta["val"] = product.meta["val"].double()
    return plan


def missing_value(graph: fx.Graph, plan: Plan) -> Plan:
    del first(graph, aten.tanh.default).meta["val"]
    return plan


def shared_draw(graph: fx.Graph, plan: Plan) -> Plan:
    draws = [node for node in graph.nodes if node.target is aten.select.int]
    draws[1].args = draws[0].args
    return plan


def other_signs(graph: fx.Graph, plan: Plan) -> Plan:
    compressed = [node for node in graph.nodes if node.target is load()["compress_tokens"].op][-1]
    compressed.args = (*compressed.args[:-1], compressed.args[1])  # the other operand has none
    return plan


def quantised_forward(graph: fx.Graph, plan: Plan) -> Plan:
    compressed = first(graph, load()["compress_tokens"].op)
    output = next(iter(reversed(graph.nodes)))
    output.args = ([next(iter(compressed.users)), *output.args[0]],)  # type: ignore[misc]
    return plan


SPOILS: dict[Spoil, str] = {
    second_decision: "every product has exactly one decision",
    no_decision: "every product has exactly one decision",
    low_rank_on_grad_input: "low rank is taken along the tokens only",
    compressed_parameter: "low rank is taken along the tokens only",
    reads_what_comes_later: "the graph is well formed",
    illegal_scheme: "a scheme is used only where its rule calls it legal",
    scales_swapped: "scales vary only along axes that are not contracted",
    other_order: "both operands carry the same transform along the contracted axis",
    other_signs: "both operands carry the same transform along the contracted axis",
    wrong_value: "every node carries meta['val'], and it matches the op's fake result",
    missing_value: "every node carries meta['val'], and it matches the op's fake result",
    shared_draw: "every stochastic rounding has a random draw of its own",
    quantised_forward: "the forward is exact unless the plan quantises it",
}


def test_every_law_is_broken_once() -> None:
    assert set(SPOILS.values()) == {law.sentence for law in LAWS}


@pytest.mark.parametrize("spoil", SPOILS, ids=lambda spoil: spoil.__name__)
def test_law(spoil: Spoil, monkeypatch: pytest.MonkeyPatch) -> None:
    caught: list[LawViolation] = []
    whole = Pipeline.rewrite_joint

    def spoiled(pipeline: Pipeline, graph: fx.Graph) -> None:
        whole(pipeline, graph)
        assert pipeline.plan is not None
        copy = fx.GraphModule({}, fx.Graph())
        copy.graph.output(copy.graph.graph_copy(graph, {}))
        values = [n.meta["val"] for n in graph.nodes if isinstance(n.meta.get("val"), torch.Tensor)]
        with compat.fresh_fake_mode(values):
            plan = spoil(copy.graph, pipeline.plan)
        with pytest.raises(LawViolation) as raised:
            enforce(JointGraph(copy.graph, pipeline.inputs), plan, "a pass under test")
        caught.append(raised.value)

    monkeypatch.setattr(Pipeline, "rewrite_joint", spoiled)
    module = nn.Sequential(nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 8))
    compiled, _ = traced(module, {**FINE, "grad_input": {"bits": 8}, "grad_weight": {"rank": 16}})
    gradients(compiled, module, torch.randn(50, 24, requires_grad=True))
    assert caught[0].law == SPOILS[spoil]
    assert "a pass under test" in str(caught[0]) and "profile" in str(caught[0])
