"""The forward in 8 bits: a policy, never a default."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import FINE, gradients, ratio, traced
from torch import nn
from torch.utils.checkpoint import checkpoint

from hadamard_fx.errors import SchemeError
from hadamard_fx.plan import Role
from hadamard_fx.policy import Policy
from hadamard_fx.scheme import Hadamard

FORWARD = {**FINE, "forward": "hadamard8"}
BOUND = 0.05
"""8 bits: about 1 % per product, a few layers deep, forward and backward."""


def calls(graph: torch.fx.GraphModule, name: str) -> list[torch.fx.Node]:
    return [node for node in graph.graph.nodes if f"hadamard.{name}" in str(node.target)]


class Shared(nn.Module):
    """Three products of one x, one of them without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(48, 32), nn.Linear(48, 32), nn.Linear(48, 32, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.q(x)) * self.k(x) + self.v(x)


class Conv1D(nn.Module):
    """As in GPT-2: the weight is [I, O]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(48, 32) / 7), nn.Parameter(torch.randn(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x.flatten(0, 1), self.weight).unflatten(0, x.shape[:2])


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(48, 64), nn.Linear(64, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + checkpoint(lambda t: self.b(torch.relu(self.a(t))), x, use_reentrant=False)


@pytest.mark.parametrize("make", [Shared, Conv1D, Checkpointed])
def test_results_and_gradients(make: Any) -> None:
    torch.manual_seed(0)
    module, x = make(), torch.randn(4, 40, 48, requires_grad=True)
    exact = gradients(module, module, x)
    compiled, trace = traced(module, FORWARD)
    assert 0 < ratio(compiled(x), module(x)) < BOUND
    found = gradients(compiled, module, x)
    assert max(ratio(found[name], exact[name]) for name in exact) < BOUND
    decisions = trace.of(Role.FORWARD)
    assert decisions and all(isinstance(d.scheme, Hadamard) and d.scheme.bits == 8 for d in decisions)


def test_one_x_is_quantised_once() -> None:
    module, x = Shared(), torch.randn(4, 40, 48, requires_grad=True)
    compiled, trace = traced(module, FORWARD)
    compiled(x).sum().backward()
    assert len(calls(trace.forward[0], "quantized_mm")) == 3
    assert len(calls(trace.forward[0], "quantize_rows")) == 4  # x and the three weights
    biased = [
        node for node in calls(trace.forward[0], "quantized_mm") if len(node.args) > 6 and node.args[6] is not None
    ]
    assert len(biased) == 2


def test_the_backward_computes_no_forward_again() -> None:
    module = nn.Sequential(nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 48))
    compiled, trace = traced(module, FORWARD)
    compiled(torch.randn(64, 48, requires_grad=True)).sum().backward()
    assert len(calls(trace.backward[0], "quantized_mm")) == 4  # two layers, two gradients each


def test_autocast_quantises_the_master_copy() -> None:
    module, x = nn.Linear(48, 32), torch.randn(64, 48)

    def run(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return module(x)

    compiled, trace = traced(run, FORWARD)
    assert ratio(compiled(x).float(), module(x)) < BOUND
    weights = [node for node in calls(trace.forward[0], "quantize_rows") if node.args[0].op == "placeholder"]
    assert [node.args[0].meta["val"].dtype for node in weights] == [torch.float32]


def test_inference_too_and_overrides_rule() -> None:
    module, x = nn.Sequential(nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 8)), torch.randn(64, 48)
    compiled, trace = traced(module, {**FORWARD, "overrides": {"2": {"forward": "exact"}}})
    with torch.no_grad():
        assert 0 < ratio(compiled(x), module(x)) < BOUND
    schemes = {d.gemm.layer: d.scheme.kind for d in trace.of(Role.FORWARD)}
    assert schemes == {"0": "hadamard", "2": "exact"}


def test_hot_leaves_the_forward_alone() -> None:
    assert Policy.resolve({"profile": "hot"}).choice("x", Role.FORWARD).schemes[0].kind == "exact"
    assert Policy.resolve({"forward": {"bits": 6}}).forward == Hadamard(bits=6, rounding="nearest")


@pytest.mark.parametrize("shape", [(), (1,), (32,), (1, 32), (160, 1), (160, 32)], ids=str)
def test_a_bias_of_any_shape(shape: tuple[int, ...]) -> None:
    bias, weight, x = torch.randn(shape), nn.Parameter(torch.randn(48, 32) / 7), torch.randn(160, 48)
    compiled, _ = traced(lambda x: torch.addmm(bias, x, weight), FORWARD)
    assert ratio(compiled(x), torch.addmm(bias, x, weight)) < BOUND


@pytest.mark.parametrize(
    "value",
    [{"rounding": "stochastic"}, {"rounding": "pseudo_stochastic"}, Hadamard(), "hadamard4", {"kind": "low_rank"}],
)
def test_bad_forward_schemes(value: object) -> None:
    with pytest.raises(SchemeError, match="forward"):
        Policy.resolve({"forward": value})
