"""Unrolled loops are rolled up into the same function, whatever they look like; what is not understood is left."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hadamard_fx
from hadamard_fx.kernels import recurrence
from hadamard_fx.passes.roll_loops import FEWEST_STEPS, roll_loops
from hadamard_fx.plan import Role

STEPS, BATCH, INPUTS, HIDDEN = 2 * FEWEST_STEPS, 3, 4, 6


class Net(nn.Module):
    """One loop in one of many spellings, in float64: rolling changes no more than the order of sums."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way = way
        self.W, self.U = nn.Linear(HIDDEN, HIDDEN), nn.Linear(INPUTS, HIDDEN, bias=False)
        self.W2, self.U2 = nn.Linear(HIDDEN, HIDDEN, bias=False), nn.Linear(HIDDEN, HIDDEN)
        self.start = nn.Parameter(torch.rand(1, HIDDEN))
        self.tanh, self.relu, self.drop = nn.Tanh(), nn.ReLU(), nn.Dropout(0.5)
        self.double()

    def forward(self, x: Tensor) -> Any:
        return getattr(self, self.way)(x)

    def zero(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[0], HIDDEN)

    def operators(self, x: Tensor) -> Tensor:
        h = self.zero(x)
        for t in range(x.shape[1]):
            h = torch.relu(x[:, t] @ self.U.weight.T + h @ self.W.weight.T)
        return h

    def modules_and_outputs(self, x: Tensor) -> Tensor:
        h, outputs = self.zero(x), []
        for step in x.unbind(1):
            h = self.tanh(self.W(h) + self.U(step))
            outputs.append(h)
        return torch.stack(outputs, dim=1)

    def addmm_of_one_product(self, x: Tensor) -> Tensor:
        driven, h, outputs = F.linear(x, self.U.weight), self.zero(x), []
        for t in range(x.shape[1]):
            h = F.relu(torch.addmm(driven[:, t, :], h, self.W.weight.t()))
            outputs.append(h.sum())
        return torch.stack(outputs)

    def not_transposed(self, x: Tensor) -> Tensor:
        h = self.zero(x)
        for step in x.transpose(0, 1):
            h = (torch.mm(h, self.W.weight) + step.matmul(self.U.weight.mT) + self.W.bias).tanh()
        return h

    def learned_start(self, x: Tensor) -> Tensor:
        h = self.start
        for t in range(2, x.shape[1]):
            h = self.relu(F.linear(h, self.W.weight, self.W.bias) + F.linear(x[:, t], self.U.weight))
        return h

    def two_layers(self, x: Tensor) -> Tensor:
        one = two = self.zero(x)
        for step in x.unbind(1):
            one = torch.tanh(self.W(one) + self.U(step))
            two = torch.tanh(self.U2(one) + self.W2(two))
        return two

    def two_layers_without_a_matrix_between(self, x: Tensor) -> Tensor:
        one = two = self.zero(x)
        for step in x.unbind(1):
            one = torch.tanh(self.W(one) + self.U(step))
            two = torch.tanh(one + self.W2(two))
        return two + one

    def nothing_enters(self, x: Tensor) -> Tensor:
        h = x[:, 0] @ self.U.weight.T
        for _ in range(x.shape[1]):
            h = torch.tanh(self.W(h))
        return h

    def inputs_that_differ(self, x: Tensor) -> Tensor:
        h = self.zero(x)
        for t in range(x.shape[1]):
            h = torch.tanh(self.W(h) + self.U(x[:, t] * (t + 1)))
        return h

    def backwards(self, x: Tensor) -> Tensor:
        h = self.zero(x)
        for t in reversed(range(x.shape[1])):
            h = torch.tanh(self.W(h) + self.U(x[:, t]))
        return h

    def fed_back(self, x: Tensor) -> Tensor:
        h = self.zero(x)
        for step in x.unbind(1):
            h = torch.tanh(self.W(h) + self.U(step) + self.U2(h).relu())
        return h

    def coupled(self, x: Tensor) -> Tensor:
        one = two = self.zero(x)
        for step in x.unbind(1):
            one, two = torch.tanh(self.W(one) + self.U(step) + two), torch.tanh(self.W2(two) + one)
        return two

    def dropped_out(self, x: Tensor) -> Tensor:
        h = self.zero(x)
        for step in x.unbind(1):
            h = torch.tanh(self.W(h) + self.U(self.drop(step)))
        return h

    def in_place(self, x: Tensor) -> Tensor:
        h, kept = self.zero(x), x.new_zeros(BATCH, HIDDEN)
        for step in x.unbind(1):
            h = torch.tanh(self.W(h) + self.U(step))
            kept.add_(h)
        return kept

    def sigmoid(self, x: Tensor) -> Tensor:
        h = self.zero(x)
        for step in x.unbind(1):
            h = torch.sigmoid(self.W(h) + self.U(step))
        return h

    def feed_forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.tanh(self.U(step)) for step in x.unbind(1)])


def rolled(net: Net, x: Tensor) -> tuple[Any, int, int, tuple[str, ...]]:
    """(the result, calls of the operator, nodes of the graph, what was left and why)."""
    facts: list[Any] = []

    def backend(gm: torch.fx.GraphModule, _: Any) -> Any:
        left = roll_loops(gm)
        calls = [node for node in gm.graph.nodes if node.target is recurrence.KERNEL.op]
        facts[:] = len(calls), len(gm.graph.nodes), left
        return gm.forward

    torch._dynamo.reset()
    return (torch.compile(net, backend=backend)(x), *facts)


def gradients(y: Tensor, net: Net) -> dict[str, Tensor]:
    net.zero_grad()
    y.square().sum().backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


SPELLINGS = {
    "operators": 1,
    "modules_and_outputs": 1,
    "addmm_of_one_product": 1,
    "not_transposed": 1,
    "learned_start": 1,
    "two_layers": 2,
    "two_layers_without_a_matrix_between": 2,
    "inputs_that_differ": 1,
    "backwards": 1,
}


@pytest.mark.parametrize("way", SPELLINGS)
def test_the_same_function(way: str) -> None:
    net, x = Net(way), torch.randn(BATCH, STEPS, INPUTS, dtype=torch.float64)
    y, calls, nodes, left = rolled(net, x)
    assert (calls, left) == (SPELLINGS[way], ())
    found, expected = gradients(y, net), gradients(net(x), net)
    torch.testing.assert_close(y, net(x), rtol=1e-12, atol=1e-12)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-11, atol=1e-12)
    if way in ("operators", "modules_and_outputs", "two_layers", "not_transposed"):
        assert nodes < 4 * STEPS  # what enters the steps is no node a step either


@pytest.mark.parametrize(
    ("way", "match"),
    [
        ("fed_back", "in other ways than by the recurrent weight"),
        ("coupled", "in other ways than by the recurrent weight"),
        ("dropped_out", "dropout.* must stay in its place"),
        ("nothing_enters", "or the same at every step"),
        ("in_place", "add_.* must stay in its place"),
    ],
)
def test_left_with_a_reason(way: str, match: str) -> None:
    net, x = Net(way), torch.randn(BATCH, STEPS, INPUTS, dtype=torch.float64)
    torch.manual_seed(1)
    y, calls, _, left = rolled(net, x)
    assert calls == 0 and left
    assert all(re.search(f"a loop of {STEPS} steps.*{match}", sentence) for sentence in left)
    torch.manual_seed(1)
    torch.testing.assert_close(y, net(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("way", ["operators", "learned_start"])
def test_a_batch_of_any_size(way: str) -> None:
    """One compilation for all: the number of rows is a symbol of the graph."""
    net, x = Net(way).float(), torch.randn(BATCH, STEPS, INPUTS)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="hadamard", options={"profile": "exact", "roll_loops": True}, dynamic=True)
    for rows in (BATCH, 5, 8):
        x = torch.randn(rows, STEPS, INPUTS)
        found, expected = gradients(compiled(x), net), gradients(net(x), net)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)
    (report,) = [r for r in hadamard_fx.reports() if r.plan.decisions][-1:]
    (steps,) = [d.gemm for d in report.plan.decisions if d.gemm.op == "recurrence"]
    assert steps.M.symbol and steps.batch.hint in (STEPS, STEPS - 2)


@pytest.mark.parametrize("way", ["sigmoid", "feed_forward"])
def test_not_recognised(way: str) -> None:
    net, x = Net(way), torch.randn(BATCH, STEPS, INPUTS, dtype=torch.float64)
    assert rolled(net, x)[1] == 0


@pytest.mark.parametrize("way", ["operators", "learned_start"])
def test_the_product_of_the_first_state_is_no_gradient_over_tokens(way: str) -> None:
    """A rank cut would compress a parameter, or zeros that were never computed."""
    net, x = Net(way).float(), torch.randn(32, STEPS, INPUTS)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="hadamard", options={"profile": "hot", "roll_loops": True})
    compiled(x).square().sum().backward()
    found = {(d.gemm.role, d.rewritten) for d in hadamard_fx.reports()[-1].plan.decisions}
    assert {(Role.GRAD_WEIGHT, True), (Role.PARAMETERS, False)} <= found, found


def test_short_loops_are_left_to_the_compiler() -> None:
    x = torch.randn(BATCH, FEWEST_STEPS - 1, INPUTS, dtype=torch.float64)
    assert rolled(Net("operators"), x)[1] == 0


def test_which_profiles_roll() -> None:
    """``qornn`` does, others when they are asked to; the report warns of what stays unrolled."""
    x = torch.randn(BATCH, STEPS, INPUTS)

    def kinds(way: str, options: dict[str, Any]) -> set[str]:
        explanation = hadamard_fx.explain(Net(way).float(), loss=lambda y: y.sum(), options=options)(x)
        (report,) = explanation.reports
        if way == "fed_back":
            assert any("is compiled step by step" in warning for warning in report.warnings)
        return {decision.gemm.op for decision in report.plan.decisions}

    assert "recurrence" in kinds("operators", {"profile": "qornn"})
    assert "recurrence" not in kinds("operators", {"profile": "qornn", "roll_loops": False})
    assert "recurrence" not in kinds("operators", {"profile": "exact"})
    assert "recurrence" in kinds("operators", {"profile": "exact", "roll_loops": True})
    assert "recurrence" not in kinds("fed_back", {"profile": "qornn"})
