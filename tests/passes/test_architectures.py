"""Roles, layer names and gradients on the architectures that the design names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from harness import FINE, gradients, ratio, traced
from torch import nn
from torch.utils.checkpoint import checkpoint

from hadamard_fx.plan import Role

FORWARD, GRAD_INPUT, GRAD_WEIGHT, ACTIVATION = Role.FORWARD, Role.GRAD_INPUT, Role.GRAD_WEIGHT, Role.ACTIVATION
BOUND = 0.03
"""8 bits: a step of amax/127 with amax about 4 sigma gives 0.9 % per operand; three layers deep, and some slack."""


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(24, 64)
        self.fc2 = nn.Linear(64, 40, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Attention(nn.Module):
    def __init__(self, math: bool) -> None:
        super().__init__()
        self.math = math
        self.norm = nn.LayerNorm(32)
        self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))
        self.proj = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).unflatten(-1, (4, 8)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.math:
            mixed = torch.softmax(q @ k.transpose(-1, -2) * 8**-0.5, -1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(mixed.transpose(1, 2).flatten(-2))


class Lora(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(32, 48).requires_grad_(False)
        self.down = nn.Linear(32, 4, bias=False)
        self.up = nn.Linear(4, 48, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.body = nn.Linear(32, 32)
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.body(self.embedding(tokens))))


def check_gradients(module: nn.Module, *inputs: torch.Tensor, vanishing: tuple[str, ...] = ()) -> None:
    exact = gradients(module, module, *inputs)
    compiled, _ = traced(module)
    found = gradients(compiled, module, *inputs)
    assert found.keys() == exact.keys()
    errors = {name: ratio(found[name], exact[name]) for name in exact if name not in vanishing}
    print(errors)
    assert max(errors.values()) < BOUND, errors


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_mlp_has_every_role_and_a_name() -> None:
    module = MLP()
    compiled, trace = traced(module)
    gradients(compiled, module, torch.randn(3, 7, 24, requires_grad=True))
    assert sorted(trace.roles("fc1")) == sorted([FORWARD, GRAD_INPUT, GRAD_WEIGHT])
    assert sorted(trace.roles("fc2")) == sorted([FORWARD, GRAD_INPUT, GRAD_WEIGHT])
    weight = next(d.gemm for d in trace.of(GRAD_WEIGHT) if d.gemm.layer == "fc1")
    assert {weight.M.hint, weight.N.hint} == {64, 24} and weight.K.hint == 21
    assert weight.weight == "fc1.weight"


def test_first_layer_without_input_gradient_has_no_grad_input() -> None:
    module = MLP()
    compiled, trace = traced(module)
    gradients(compiled, module, torch.randn(5, 24))
    assert sorted(trace.roles("fc1")) == sorted([FORWARD, GRAD_WEIGHT])


@pytest.mark.parametrize("tokens", [1, 7, 16, 33])
def test_mlp_gradients(tokens: int) -> None:
    check_gradients(MLP(), torch.randn(tokens, 24, requires_grad=True))


@pytest.mark.parametrize("math", [False, True], ids=["sdpa", "math"])
def test_attention(math: bool) -> None:
    module = Attention(math)
    x = torch.randn(2, 9, 32, requires_grad=True)
    check_gradients(module, x, vanishing=("k.bias",))  # softmax does not see a shift of every score
    compiled, trace = traced(module)
    gradients(compiled, module, x)
    for layer in "qkv":
        assert sorted(trace.roles(layer)) == sorted([FORWARD, GRAD_INPUT, GRAD_WEIGHT])
    assert len(trace.of(ACTIVATION)) == (6 if math else 0)
    compressed = [n for n in trace.forward[0].graph.nodes if "compress_tokens" in str(n.target)]
    assert len(compressed) == (2 if math else 1), "q, k and v share one compressed x"


def test_attention_output_is_compressed_where_the_backward_holds_it_anyway() -> None:
    module = Attention(math=False)
    compiled, trace = traced(module)
    gradients(compiled, module, torch.randn(2, 9, 32, requires_grad=True))
    inside = [n for n in trace.backward[0].graph.nodes if "compress_tokens" in str(n.target)]
    assert len(inside) == 5, "four gradients and the attention's own output"


def test_autocast() -> None:
    module = MLP()

    def run(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return module(x)

    x = torch.randn(12, 24, requires_grad=True)
    exact = gradients(run, module, x)
    compiled, trace = traced(run)
    found = gradients(compiled, module, x)
    assert sorted(trace.roles("fc2")) == sorted([FORWARD, GRAD_INPUT, GRAD_WEIGHT])
    assert {d.gemm.dtype for d in trace.decisions} == {"bfloat16"}
    assert max(ratio(found[name], exact[name]) for name in exact) < BOUND
    kept = {s.node for s in trace.pipelines[0].saved}
    assert not any("convert_element_type" in name for name in kept), "no second copy of a weight is kept"


def test_activation_checkpointing_keeps_what_the_user_decided() -> None:
    module = MLP()

    def run(x: torch.Tensor) -> torch.Tensor:
        return checkpoint(module, x, use_reentrant=False)

    x = torch.randn(12, 24, requires_grad=True)
    exact = gradients(run, module, x)
    compiled, trace = traced(run)
    found = gradients(compiled, module, x)
    assert max(ratio(found[name], exact[name]) for name in exact) < BOUND
    assert sum(s.bytes for s in trace.pipelines[0].saved) <= sum(s.bytes for s in trace.pipelines[0].saved_exact)


def test_tied_embedding() -> None:
    module = Tied()
    tokens = torch.randint(0, 50, (3, 11))
    check_gradients(module, tokens)
    compiled, trace = traced(module)
    gradients(compiled, module, tokens)
    assert sorted(trace.roles("head")) == sorted([FORWARD, GRAD_INPUT, GRAD_WEIGHT])


def test_frozen_base_has_no_grad_weight_and_saves_no_x() -> None:
    module = Lora()
    x = torch.randn(6, 32, requires_grad=True)
    check_gradients(module, x)
    compiled, trace = traced(module, {**FINE, "overrides": {"down|up": "exact"}})
    gradients(compiled, module, x)
    assert sorted(trace.roles("base")) == sorted([FORWARD, GRAD_INPUT])
    assert all(d.gemm.frozen for d in trace.decisions if d.gemm.layer == "base")
    assert not [n for n in trace.forward[0].graph.nodes if "compress_tokens" in str(n.target)]


def test_one_layer_used_twice() -> None:
    layer = nn.Linear(16, 16)

    def run(x: torch.Tensor) -> torch.Tensor:
        return layer(torch.tanh(layer(x)))

    x = torch.randn(20, 16, requires_grad=True)
    exact = gradients(run, layer, x)
    compiled, trace = traced(run)
    found = gradients(compiled, layer, x)
    assert max(ratio(found[name], exact[name]) for name in exact) < BOUND
    assert len({d.gemm.layer for d in trace.decisions}) == 2


def test_graph_break_gives_two_graphs() -> None:
    module = MLP()

    def run(x: torch.Tensor) -> torch.Tensor:
        h = F.gelu(module.fc1(x))
        torch._dynamo.graph_break()
        return module.fc2(h)

    x = torch.randn(9, 24, requires_grad=True)
    exact = gradients(run, module, x)
    compiled, trace = traced(run)
    found = gradients(compiled, module, x)
    assert len(trace.pipelines) == 2
    assert max(ratio(found[name], exact[name]) for name in exact) < BOUND


def test_dynamic_tokens() -> None:
    module = MLP()
    compiled, trace = traced(module, dynamic=True)
    for tokens in (16, 21, 40):
        x = torch.randn(2, tokens, 24, requires_grad=True)
        exact = gradients(module, module, x)
        found = gradients(compiled, module, x)
        assert max(ratio(found[name], exact[name]) for name in exact) < BOUND
    assert len(trace.pipelines) == 1, "no recompilation"
    assert any(d.gemm.K.symbol for d in trace.of(GRAD_WEIGHT))


def test_no_grad_leaves_everything_exact() -> None:
    module = MLP()
    compiled, trace = traced(module)
    x = torch.randn(5, 24)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), module(x))
    assert [d.gemm.role for d in trace.decisions] == [FORWARD, FORWARD]
    assert not trace.pipelines[0].plan.training


@pytest.mark.parametrize("shape", [(50, 24), (3, 50, 24)], ids=["2-D", "3-D"])
def test_bias_gradients_come_out_of_the_compression(shape: tuple[int, ...]) -> None:
    """Nothing else adds up the tokens of g_y, and the last layer's sum, whose g_y is exact, is as exact as before."""
    module, x = nn.Sequential(nn.Linear(24, 64), nn.GELU(), nn.Linear(64, 40)), torch.randn(*shape, requires_grad=True)
    exact = gradients(module, module, x)
    compiled, trace = traced(module)
    found = gradients(compiled, module, x)
    torch.testing.assert_close(found["2.bias"], exact["2.bias"], rtol=1e-5, atol=1e-6)
    assert ratio(found["0.bias"], exact["0.bias"]) < BOUND
    added = [n for n in trace.backward[0].graph.nodes if n.target is torch.ops.aten.sum.dim_IntList]
    assert len(added) == 2
    for node in added:
        (partial,) = node.all_input_nodes
        assert "compress_tokens" in str(partial.all_input_nodes[0].target)


class _SumsItself(torch.autograd.Function):
    """Adds what it wants of g_y to the gradient of a vector."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, bias: torch.Tensor, sums: Any) -> torch.Tensor:
        ctx.sums = sums
        return y + bias

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        return g, ctx.sums(g), None


@pytest.mark.parametrize(
    "sums",
    [
        lambda g: torch.sum(g, dim=None, keepdim=True).reshape(1).expand(40),
        lambda g: torch.sum(g, 0, dtype=torch.float64).float(),
        lambda g: g.sum(1).sum().expand(40),
    ],
    ids=["everything", "float64", "columns first"],
)
def test_other_sums_of_a_gradient_stay_what_they_are(sums: Any) -> None:
    layer, bias, x = nn.Linear(24, 40, bias=False), nn.Parameter(torch.randn(40)), torch.randn(64, 24)
    layer.register_parameter("extra", bias)

    def run(x: torch.Tensor) -> torch.Tensor:
        return _SumsItself.apply(layer(x), bias, sums)

    exact = gradients(run, layer, x)
    found = gradients(traced(run)[0], layer, x)
    assert torch.equal(found["extra"], exact["extra"])
