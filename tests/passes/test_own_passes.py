"""Passes of one's own: definition, options, effects, records."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from harness import FINE, gradients, traced
from own import Count, Keep, Relabel, compiled
from torch import nn

import hadamard_fx
from hadamard_fx.errors import (
    OptionError,
    PassDefinitionError,
)
from hadamard_fx.passes.joint_graph import JointGraph
from hadamard_fx.passes.registry import PASSES, active, register_pass
from hadamard_fx.plan import Exact, Hadamard, Plan, Role
from hadamard_fx.report.history import _report

aten = torch.ops.aten


def test_a_pass_changes_decisions_and_signs_them() -> None:
    register_pass(Keep, after="choose")
    _, trace = compiled()
    decisions = trace.of(Role.GRAD_INPUT)
    assert decisions and all(isinstance(d.scheme, Exact) for d in decisions)
    assert {d.reason for d in decisions} == {"pass 'keep': kept"}
    assert all(d.cost == d.exact_cost and d.rejected[-1].reason.startswith("pass 'keep'") for d in decisions)
    assert all(d.rewritten for d in trace.of(Role.GRAD_WEIGHT))


def test_a_reason_without_another_scheme_is_signed_and_the_price_stays() -> None:
    class Boast(hadamard_fx.Pass):
        def decide(self, plan: Plan, joint: JointGraph) -> Plan:
            return replace(plan, decisions=tuple(replace(d, reason="fast", cost=d.exact_cost) for d in plan.decisions))

    before = compiled()[1].of(Role.GRAD_INPUT)
    register_pass(Boast)
    for old, new in zip(before, compiled()[1].of(Role.GRAD_INPUT), strict=True):
        assert new == replace(old, reason="pass 'boast': fast")


def test_options_set_fields_and_switch_off() -> None:
    register_pass(Keep)
    _, trace = compiled(keep={"role": "grad_weight"})
    assert not any(d.rewritten for d in trace.of(Role.GRAD_WEIGHT))
    assert all(d.rewritten for d in trace.of(Role.GRAD_INPUT))
    _, trace = compiled(keep=False)
    assert all(d.rewritten for d in trace.of(Role.GRAD_INPUT))
    assert "keep" not in [record.name for record in trace.pipelines[0].records]


def test_another_scheme_is_refined_and_priced() -> None:
    class Coarse(hadamard_fx.Pass):
        def decide(self, plan: Plan, joint: JointGraph) -> Plan:
            changed = [
                replace(d, scheme=Hadamard(bits=4, rounding="nearest")) if d.gemm.role is Role.GRAD_INPUT else d
                for d in plan.decisions
            ]
            return replace(plan, decisions=tuple(changed))

    before = compiled()[1].of(Role.GRAD_INPUT)
    register_pass(Coarse)
    for old, new in zip(before, compiled()[1].of(Role.GRAD_INPUT), strict=True):
        assert isinstance(new.scheme, Hadamard) and new.scheme.bits == 4
        assert new.scheme.carrier != "auto" and new.scheme.group is not None
        assert new.cost.seconds > 0 and old.scheme in [c.scheme for c in new.rejected]


def test_a_pass_edits_the_graph_and_the_gradients_stay() -> None:
    expected, _ = compiled()
    register_pass(Relabel)
    found, trace = compiled()
    (record,) = [r for r in trace.pipelines[0].records if r.name == "relabel"]
    assert record.change == "+3 −1 nodes"
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)


def test_records_tell_time_effect_options_and_facts() -> None:
    register_pass(Keep)
    register_pass(Count, after="fuse")
    pipeline = compiled()[1].pipelines[0]
    report = _report("graph 0", pipeline)
    names = [(record.name, record.graph) for record in report.passes]
    joint = [(name, "joint") for name in ("find", "choose", "keep", "rewrite")]
    halves = [(name, half) for half in ("forward", "backward") for name in ("producers", "fuse", "count")]
    assert names == joint + halves
    assert all(record.seconds > 0 for record in report.passes)
    keep = report.passes[2]
    assert (keep.effect, keep.change, keep.builtin, keep.options) == (
        "decides", "1 decision", False, {"role": "grad_input"},
    )  # fmt: skip
    assert report.passes[-1].facts["nodes"] > 5
    assert hadamard_fx.Report.from_json(report.to_json()) == report
    assert "keep" not in report.text(width=100).split("Passes")[0].split("computed as")[0]
    assert "decides: 1 decision, role = grad_input" in report.text(details=True, width=100)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({}, "none of them"),
        ({"decide": Keep.decide, "rewrite": Relabel.rewrite}, "decide and rewrite"),
        ({"decide": Keep.decide, "observe": Count.observe}, "decide and observe"),
    ],
    ids=lambda value: " and ".join(value) if isinstance(value, dict) else "",
)
def test_a_pass_has_one_effect(body: dict[str, Any], found: str) -> None:
    with pytest.raises(PassDefinitionError, match=f"it defines {found}"):
        register_pass(type("Both", (hadamard_fx.Pass,), dict(body)))
    assert "both" not in PASSES


def test_names() -> None:
    assert (Keep.name, type("KeepEnds8Exact", (Keep,), {}).name) == ("keep", "keep-ends8-exact")
    register_pass(Keep)
    register_pass(Keep)  # the same cell, run again
    assert list(PASSES) == ["keep"]
    other = type("Other", (Keep,), {"name": "keep"})
    with pytest.raises(PassDefinitionError, match=r"two passes call themselves 'keep': own.py:\d+ and"):
        register_pass(other)
    with pytest.raises(PassDefinitionError, match="name of a stage"):
        register_pass(type("Fuse", (Keep,), {}))
    with pytest.raises(PassDefinitionError, match="lower-case words"):
        register_pass(type("X", (Keep,), {"name": "My Pass"}))


def test_what_is_no_pass() -> None:
    with pytest.raises(PassDefinitionError, match="derives from"):
        register_pass(dict)  # type: ignore[type-var]


def test_fields_without_defaults_need_an_instance() -> None:
    class Ends(hadamard_fx.Pass):
        count: int

        def observe(self, joint: JointGraph, plan: Plan) -> dict[str, Any]:
            return {}

    with pytest.raises(PassDefinitionError, match=r"count has no default.*register_pass\(Ends\(count=…\)\)"):
        register_pass(Ends)
    register_pass(Ends(3))  # type: ignore[call-arg]
    assert active({})[0].run.options() == {"count": 3}
    with pytest.raises(Exception, match="cannot assign"):
        active({})[0].run.count = 4  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kep": {}}, "unknown pass 'kep'; did you mean 'keep'"),
        ({"keep": {"rol": "x"}}, "no field 'rol'; did you mean 'role'"),
        ({"keep": {"role": 3}}, "role must be like 'grad_input', got 3"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    register_pass(Keep)
    with pytest.raises(OptionError, match=message):
        active(options)


@pytest.mark.parametrize("value", [3, {"keep": 3}, {3: {}}, {"keep": None}])
def test_options_of_the_wrong_form(value: Any) -> None:
    with pytest.raises(OptionError, match="option 'passes'"):
        hadamard_fx.Policy.resolve({"passes": value}, environ={})


def test_lists_become_tuples() -> None:
    class Layers(Keep):
        layers: tuple[str, ...] = ()

    register_pass(Layers)
    assert active({"layers": {"layers": ["a", "b"]}})[0].run == Layers(layers=("a", "b"))  # type: ignore[call-arg]


def test_keep_ends_exact(load: Any) -> None:
    load("keep_ends_exact.py")
    torch.manual_seed(0)
    module = nn.Sequential(*(nn.Linear(16, 16) for _ in range(5)))
    for count, rewritten in ((0, 5), (1, 3), (2, 1), (3, 0)):
        function, trace = traced(module, {**FINE, "passes": {"keep-ends-exact": {"count": count}}})
        gradients(function, module, torch.randn(32, 16))
        layers = {d.gemm.layer for d in trace.decisions if d.rewritten}
        assert len(layers) == rewritten
        assert layers <= {str(i) for i in range(count, 5 - count)}
    with pytest.raises(OptionError, match="count must not be negative"):
        active({"keep-ends-exact": {"count": -1}})
