"""HDQT in whole models: against an eager form of the equations, what is saved, what is counted, what is reported."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import gradients, ratio, traced
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hadamard_fx.errors import LawViolation
from hadamard_fx.kernels import saturation
from hadamard_fx.kernels.library import load
from hadamard_fx.passes.joint_graph import JointGraph
from hadamard_fx.passes.laws import enforce
from hadamard_fx.passes.manager import Pipeline
from hadamard_fx.plan import Role
from hadamard_fx.report.report import Report

GRAD_INPUT = {"kind": "saturating_grad_input", "rounding": "nearest"}
GRAD_WEIGHT = {"kind": "saturating_grad_weight", "rounding": "nearest", "input_rounding": "nearest"}
NEAREST: dict[str, Any] = {"profile": "hdqt", "grad_input": GRAD_INPUT, "grad_weight": GRAD_WEIGHT}
"""The published numbers without a random draw."""


def sylvester(order: int) -> Tensor:
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < order:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), matrix)
    return matrix


def rounded(v: Tensor, unsigned: bool = False) -> tuple[Tensor, Tensor]:
    """Q(clamp(v, ±α max|v|)) for 4 bits, and its scale."""
    end = 0.975 * v.abs().max()
    positive = unsigned and bool(v.min() >= 0)
    step = end / (15 if positive else 7)
    return (v.clamp(0 if positive else -end, end) / step).round(), step


def transformed(v: Tensor, scale: Any = 1.0) -> tuple[Tensor, Tensor, int]:
    """Q(v (I ⊗ H)) along the last axis, its scale, and the order."""
    extent = v.shape[1]
    order = next(2**p for p in range(20, -1, -1) if extent % 2**p == 0)
    q, step = rounded((v.reshape(-1, order) @ sylvester(order)).reshape(v.shape))
    return q, step * scale, order


class Layer(torch.autograd.Function):
    """HDQT's equations in float64, from the paper and not from the kernels: tiles of 32, A = 8."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        (xq, sx), (wq, sw) = rounded(x, unsigned=True), rounded(w)
        ctx.save_for_backward(xq, sx, wq, sw)
        tiles = zip(xq.split(32, 1), wq.split(32, 1), strict=True)
        return sx * sw * sum((a @ b.T).clamp(-127, 127) for a, b in tiles)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        xq, sx, wq, sw = ctx.saved_tensors
        (a, sa, order), (b, sb, _) = transformed(gradient), transformed(wq.T, sw)
        g_x = (a @ b.T).clamp(-127, 127) * sa * sb / order
        (a, sa, order), (b, sb, _) = transformed(gradient.T), transformed(xq.T, sx)
        return g_x, (a @ b.T).clamp(-127, 127) * sa * sb / order


class Net(nn.Module):
    """Three layers; the widths divide by 16, 96 = 3·32 and 2."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(48, 96), nn.Linear(96, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.b(torch.relu(self.a(x)))))


def eager(net: nn.Module, x: Tensor) -> Tensor:
    hidden = torch.relu(Layer.apply(x, net.a.weight) + net.a.bias)
    hidden = torch.tanh(Layer.apply(hidden, net.b.weight) + net.b.bias)
    return Layer.apply(hidden, net.c.weight) + net.c.bias


def test_gradients_of_a_model_follow_the_equations() -> None:
    """float32 against float64: a value on a boundary may round to the other side, once in some thousands. One step of
    one operand moves a product by less than 1 % here; without such a flip all agree within 1e-5."""
    torch.manual_seed(0)
    net, x = Net(), torch.randn(96, 48, requires_grad=True)
    compiled, trace = traced(net, NEAREST)
    exact = Net().double()
    exact.load_state_dict(net.state_dict())
    wide = x.detach().double().requires_grad_()
    expected = gradients(lambda x: eager(exact, x).double(), exact, wide)
    assert ratio(compiled(x.detach()), eager(exact, wide).detach()) < 1e-5
    compiled, trace = traced(net, NEAREST)
    found = gradients(compiled, net, x)
    ratios = {name: ratio(found[name], expected[name]) for name in expected}
    print(ratios)
    assert max(ratios.values()) < 0.02
    assert {d.scheme.order for d in trace.of(Role.GRAD_INPUT)} == {32, 64, 2}  # type: ignore[attr-defined]
    assert {d.scheme.order for d in trace.of(Role.GRAD_WEIGHT)} == {32}  # type: ignore[attr-defined]


def calls(graph: torch.fx.GraphModule, name: str) -> list[torch.fx.Node]:
    return [node for node in graph.graph.nodes if f"hadamard.{name}" in str(node.target)]


def test_only_the_integers_of_the_input_are_saved() -> None:
    net = nn.Sequential(nn.Linear(48, 64), nn.GELU(), nn.Linear(64, 32))  # GELU's backward reads no product's input
    compiled, trace = traced(nn.Sequential(nn.LayerNorm(48), net), {"profile": "hdqt"})
    compiled(torch.randn(64, 48)).sum().backward()
    kept = trace.forward[0].graph.find_nodes(op="output")[0].args[0][1:]
    integers = [node.meta["val"].shape for node in kept if node.meta["val"].dtype is torch.int8]
    assert sorted(map(tuple, integers)) == [(64, 48), (64, 64)]  # of both inputs, of no weight


def test_an_input_that_lives_anyway_is_rounded_again() -> None:
    layer, x = nn.Linear(48, 32), torch.randn(64, 48)
    compiled, trace = traced(layer, NEAREST)
    found = gradients(compiled, layer, x)
    kept = trace.forward[0].graph.find_nodes(op="output")[0].args[0][1:]
    assert not [node for node in kept if node.meta["val"].dtype is torch.int8]
    exact = nn.Linear(48, 32).double()
    exact.load_state_dict(layer.state_dict())
    expected = gradients(lambda x: Layer.apply(x, exact.weight) + exact.bias, exact, x.double())
    assert ratio(found["weight"], expected["weight"]) < 0.02


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(48, 64), nn.Linear(64, 48)

    def forward(self, x: Tensor) -> Tensor:
        return x + checkpoint(lambda t: self.b(torch.relu(self.a(t))), x, use_reentrant=False)


class Conv1D(nn.Module):
    """As in GPT-2: the weight is [I, O]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(48, 32) / 7), nn.Parameter(torch.randn(32))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.flatten(0, 1), self.weight).unflatten(0, x.shape[:2])


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(48, 32), nn.Linear(48, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.q(x)) * self.k(x)


WIDE = {"bits": 8, "accumulator_bits": 32}
FINE: dict[str, Any] = {
    "profile": "hdqt",
    "forward": {"kind": "saturating_forward", "alpha": 1.0, **WIDE},
    "grad_input": {**GRAD_INPUT, "alpha": 1.0, **WIDE},
    "grad_weight": {**GRAD_WEIGHT, "alpha": 1.0, **WIDE},
}


@pytest.mark.parametrize("forward", [FINE["forward"], "exact"], ids=["forward", "backward only"])
@pytest.mark.parametrize("make", [Net, Checkpointed, Conv1D, Shared])
def test_eight_bits_are_near_exact(make: Any, forward: Any) -> None:
    """The plumbing: in 8 bits with wide sums every result is within a few hundredths of the exact one."""
    torch.manual_seed(0)
    module, x = make(), torch.randn(*((4, 40) if make is not Net else (160,)), 48, requires_grad=True)
    exact = gradients(module, module, x)
    compiled, trace = traced(module, {**FINE, "forward": forward})
    found = gradients(compiled, module, x)
    assert max(ratio(found[name], exact[name]) for name in exact) < 0.1
    assert all(d.rewritten for d in trace.decisions if forward != "exact" or d.gemm.role is not Role.FORWARD)


def test_any_number_of_tokens_with_one_graph() -> None:
    torch.manual_seed(0)
    net = Net()
    compiled, trace = traced(net, FINE, dynamic=True)
    for tokens in (64, 48, 33):
        x = torch.randn(tokens, 48, requires_grad=True)
        exact = gradients(net, net, x)
        found = gradients(compiled, net, x)
        assert max(ratio(found[name], exact[name]) for name in exact) < 0.1
    assert len(trace.pipelines) == 1
    assert {d.scheme.order for d in trace.of(Role.GRAD_WEIGHT)} == {None}  # type: ignore[attr-defined]


def test_no_transform_is_said() -> None:
    layer = nn.Linear(48, 405)
    compiled, trace = traced(layer, {"profile": "hdqt"})
    compiled(torch.randn(64, 48, requires_grad=True)).sum().backward()
    (decision,) = trace.of(Role.GRAD_INPUT)
    assert "no power of two divides 405" in decision.reason and "no transform" in str(decision.scheme)


def test_saturated_sums_are_counted_and_reported() -> None:
    torch.manual_seed(0)
    narrow = {"kind": "saturating_forward", "accumulator_bits": 4}
    layer, x = nn.Linear(64, 32), torch.randn(16, 64)
    compiled, trace = traced(layer, {"profile": "hdqt", "forward": narrow, "count_saturation": True})
    saturation.forget()
    compiled(x).sum().backward()
    report = Report(trace.pipelines[0].plan)  # type: ignore[arg-type]
    counted = {str(entry.decision.gemm.role): entry for entry in report.saturation}
    (xq, _), (wq, _) = rounded(x.double(), unsigned=True), rounded(layer.weight.detach().double())
    tiles = zip(xq.split(32, 1), wq.split(32, 1), strict=True)
    expected = sum(int(((a @ b.T).abs() > 7).sum()) for a, b in tiles)
    assert (counted["forward"].saturated, counted["forward"].sums) == (expected, 2 * 16 * 32)
    assert counted["grad_weight"].sums == 32 * 64
    assert f"{expected} of 1024" in report.to_html()
    assert f"{expected} of 1024" in report.text() and report.as_dict()["saturation"][0]["saturated"] == expected
    compiled(x)
    assert report.saturation[0].sums == 2 * 2 * 16 * 32


def test_nothing_is_counted_unless_asked() -> None:
    layer = nn.Linear(64, 32)
    compiled, trace = traced(layer, {"profile": "hdqt"})
    compiled(torch.randn(16, 64)).sum().backward()
    assert all(node.args[8] == "" for node in calls(trace.forward[0], "saturating_mm"))
    assert Report(trace.pipelines[0].plan).saturation == ()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "position", "law"), [("order", 3, "same transform"), ("scale", 2, "scales vary only")]
)
def test_laws(name: str, position: int, law: str, monkeypatch: pytest.MonkeyPatch) -> None:
    caught: list[LawViolation] = []
    whole = Pipeline.rewrite_joint

    def spoiled(pipeline: Pipeline, graph: torch.fx.Graph) -> None:
        whole(pipeline, graph)
        products = [node for node in graph.nodes if node.target is load()["saturating_mm"].op]
        spoilt: Any = products[-1].args[0].args[0] if name == "order" else products[0]  # type: ignore[union-attr]
        before = spoilt.args
        other = 2 if name == "order" else products[0].args[0]
        spoilt.args = (*before[:position], other, *before[position + 1 :])
        with pytest.raises(LawViolation) as raised:
            enforce(JointGraph(graph, pipeline.inputs), pipeline.plan, "a pass under test")
        caught.append(raised.value)
        spoilt.args = before

    monkeypatch.setattr(Pipeline, "rewrite_joint", spoiled)
    compiled, _ = traced(nn.Linear(48, 32), {"profile": "hdqt"})
    compiled(torch.randn(64, 48, requires_grad=True)).sum().backward()
    assert law in caught[0].law
