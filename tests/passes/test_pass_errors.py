"""What a pass may not do, and how it is told: the pass, the node, the user's line, the pass's own line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.fx as fx
from own import failing

import hadamard_fx
from hadamard_fx.errors import (
    LawViolation,
    PassEffectError,
    PassFailure,
)
from hadamard_fx.passes.editing import GraphEditor
from hadamard_fx.passes.joint_graph import JointGraph
from hadamard_fx.passes.registry import register_pass
from hadamard_fx.plan import Hadamard, LowRank, Plan, Role

aten = torch.ops.aten


class Spoils(hadamard_fx.Pass):
    """Breaks what ``how`` names."""

    how: str = ""

    def rewrite(self, joint: JointGraph, plan: Plan) -> None:
        graph, editor = joint.graph, GraphEditor(joint, frozenset())
        tanh = next(iter(graph.find_nodes(op="call_function", target=aten.tanh.default)))
        user = next(iter(tanh.users))
        if self.how == "raises":
            raise KeyError("no such thing")
        with graph.inserting_before(user):
            if self.how == "undecided product":
                turned = editor.call(aten.permute.default, (tanh, [1, 0]), tanh, backward=False)
                product = graph.call_function(aten.mm.default, (tanh, turned))
                product.meta["val"] = tanh.meta["val"].new_empty(50, 50)
            elif self.how == "no value":
                user.replace_input_with(tanh, graph.call_function(aten.neg.default, (tanh,)))
            elif self.how == "wrong value":
                made = editor.call(aten.neg.default, (tanh,), tanh, backward=False)
                made.meta["val"] = made.meta["val"].double()
                user.replace_input_with(tanh, made)
            elif self.how == "order":
                graph.find_nodes(op="output")[0].prepend(tanh)


@pytest.mark.parametrize(
    ("how", "message", "node"),
    [
        ("undecided product", "every product has exactly one decision” is violated: a product without", "mm_"),
        ("no value", "meta['val'] is missing", "neg"),
        ("wrong value", "the op gives", "neg"),
        ("order", "erased or comes after it", ""),
    ],
)
def test_an_invalid_graph_names_law_pass_node_and_source(how: str, message: str, node: str) -> None:
    register_pass(Spoils)
    error = failing(spoils={"how": how})
    assert isinstance(error, LawViolation)
    assert message in str(error) and error.after == "spoils"
    assert error.node.startswith(node) and error.node
    assert error.source.startswith("own.py:") and "self." in error.source
    assert error.written.startswith("test_pass_errors.py:")
    assert 'options={"passes": {"spoils": False}}' in str(error)


def test_a_pass_that_raises_is_named_with_its_line() -> None:
    register_pass(Spoils)
    error = failing(spoils={"how": "raises"})
    assert isinstance(error, PassFailure)
    line = next(n for n, text in enumerate(Path(__file__).read_text().splitlines(), 1) if 'KeyError("no such' in text)
    assert error.written == f"test_pass_errors.py:{line}"
    assert "'spoils' failed on the joint graph: KeyError: 'no such thing'" in str(error)


def decides(function: Any) -> None:
    register_pass(type("Decides", (hadamard_fx.Pass,), {"decide": function}))


def test_decide_must_return_a_plan() -> None:
    decides(lambda self, plan, joint: None)
    error = failing()
    assert isinstance(error, PassEffectError) and "must return a Plan, it returned None" in str(error)


def test_decide_must_not_drop_a_decision() -> None:
    decides(lambda self, plan, joint: replace(plan, decisions=plan.decisions[1:]))
    error = failing()
    assert isinstance(error, LawViolation) and error.node == "addmm" and "self.first(x)" in error.source


def test_decide_must_not_change_a_product() -> None:
    def bigger(self: Any, plan: Plan, joint: JointGraph) -> Plan:
        first, *others = plan.decisions
        return replace(plan, decisions=(replace(first, gemm=replace(first.gemm, node="nobody")), *others))

    decides(bigger)
    error = failing()
    assert isinstance(error, PassEffectError) and error.node == "nobody" and "self.first(x)" in error.source


def test_decide_must_not_let_the_forward_draw() -> None:
    def draws(self: Any, plan: Plan, joint: JointGraph) -> Plan:
        changed = (replace(d, scheme=Hadamard(bits=8)) if d.gemm.role is Role.FORWARD else d for d in plan.decisions)
        return replace(plan, decisions=tuple(changed))

    decides(draws)
    error = failing()
    assert isinstance(error, LawViolation) and "round it to nearest" in str(error) and error.node == "addmm"


def test_decide_must_not_choose_what_is_illegal() -> None:
    def low_rank(self: Any, plan: Plan, joint: JointGraph) -> Plan:
        changed = (replace(d, scheme=LowRank()) if d.gemm.role is Role.FORWARD else d for d in plan.decisions)
        return replace(plan, decisions=tuple(changed))

    decides(low_rank)
    error = failing()
    assert isinstance(error, LawViolation) and "low rank" in error.law


@pytest.mark.parametrize("effect", ["decide", "observe"])
@pytest.mark.parametrize("edit", ["adds", "rewires", "moves", "erases"])
def test_only_rewrite_may_edit(effect: str, edit: str) -> None:
    def touch(graph: fx.Graph) -> None:
        tanh = next(iter(graph.find_nodes(op="call_function", target=aten.tanh.default)))
        if edit == "adds":
            with graph.inserting_after(tanh):
                graph.call_function(aten.neg.default, (tanh,))
        elif edit == "rewires":
            next(iter(tanh.users)).replace_input_with(tanh, tanh.args[0])
        elif edit == "moves":
            tanh.next.append(tanh)
        else:
            tanh.replace_all_uses_with(tanh.args[0])
            graph.erase_node(tanh)

    def decide(self: Any, plan: Plan, joint: JointGraph) -> Plan:
        touch(joint.graph)
        return plan

    def observe(self: Any, joint: JointGraph, plan: Plan) -> dict[str, Any]:
        touch(joint.graph)
        return {}

    register_pass(type("Sly", (hadamard_fx.Pass,), {effect: {"decide": decide, "observe": observe}[effect]}))
    error = failing()
    assert isinstance(error, PassEffectError)
    assert f"'sly' {effect}s and edited the graph" in str(error) and error.node


def test_results_keep_their_shape() -> None:
    class Turns(hadamard_fx.Pass):
        def rewrite(self, joint: JointGraph, plan: Plan) -> None:
            output = joint.graph.find_nodes(op="output")[0]
            first, *rest = output.args[0]
            with joint.graph.inserting_before(output):
                made = GraphEditor(joint, frozenset()).inline(lambda x: x.t() + 0, (first,), first, backward=False)
            output.args = ((made, *rest),)

    register_pass(Turns)
    error = failing()
    assert isinstance(error, PassEffectError)
    assert "turned result 0 of the graph from float32 [50, 8] into float32 [8, 50]" in str(error)


def test_facts_must_be_json() -> None:
    register_pass(type("Odd", (hadamard_fx.Pass,), {"observe": lambda self, joint, plan: {"graph": joint}}))
    assert "facts that JSON can hold" in str(failing())
