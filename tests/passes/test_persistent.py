"""What holds no tokens is never cut along them: products of buffers and parameters; and too few tokens, found later."""

from __future__ import annotations

import pytest
import torch
from harness import gradients, traced
from torch import nn

import hadamard_fx
from hadamard_fx.plan import Role


class BufferTimesParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("basis", torch.linalg.qr(torch.randn(64, 64))[0])
        self.inner = nn.Parameter(torch.randn(64, 64) * 0.05)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.basis @ self.inner)


def models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    orthogonal = nn.utils.parametrizations.orthogonal(nn.Linear(64, 64))
    return {"buffer": BufferTimesParameter(), "parametrization": nn.Sequential(orthogonal)}


@pytest.mark.parametrize("name", ["buffer", "parametrization"])
def test_products_of_buffers_and_parameters_stay_exact(name: str) -> None:
    module = models()[name]
    function, trace = traced(module, {"profile": "hot", "grad_input": "exact"})
    x = torch.randn(160, 64, requires_grad=True)
    found = gradients(function, module, x)
    roles = {d.gemm.role for d in trace.decisions if d.rewritten}
    assert Role.PARAMETERS in {d.gemm.role for d in trace.decisions}
    assert roles == {Role.GRAD_WEIGHT}, "that of x alone"
    exact = gradients(module, module, x)
    # the one rank cut, over x's tokens, is passed on through exact products: an orthogonal basis keeps its length
    for key, gradient in exact.items():
        if key.startswith(("inner", "0.parametrizations")):
            similar = torch.nn.functional.cosine_similarity(found[key].flatten(), gradient.flatten(), 0)
            assert similar > 0.6


def test_fewer_tokens_than_a_block_compile_anew_and_stay_exact() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer = nn.Linear(32, 24, bias=False)
    compiled = torch.compile(layer, backend=hadamard_fx.hadamard, options={"profile": "hot"}, dynamic=True)
    compiled(torch.randn(512, 32)).sum().backward()
    assert any(d.rewritten for d in hadamard_fx.reports()[-1].plan.decisions)
    compiled(torch.randn(48, 32)).sum().backward()
    reports = len(hadamard_fx.reports())
    layer.weight.grad = None
    x = torch.randn(3, 32)
    compiled(x).sum().backward()
    assert len(hadamard_fx.reports()) > reports
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(24, 32))


def test_an_override_of_a_module_reaches_each_of_its_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.other = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.other(self.fc(torch.tanh(self.fc(x))))

    module = Twice()
    function, trace = traced(module, {"profile": "hot", "overrides": {"fc": "exact"}})
    gradients(function, module, torch.randn(64, 32, requires_grad=True))
    rewritten = {d.gemm.layer for d in trace.decisions if d.rewritten}
    assert rewritten == {"other"}
    assert {"fc#0", "fc#1"} <= {d.gemm.layer for d in trace.decisions}


def test_explain_may_be_called_again() -> None:
    explained = hadamard_fx.explain(
        nn.Linear(16, 8), options={"profile": "hot", "overrides": {"weight": "exact"}}, mode="default"
    )
    x = torch.randn(32, 16)
    first, second = explained(x), explained(x)
    assert len(first.reports) == len(second.reports) == 1
    assert first.reports[0].plan.decisions == second.reports[0].plan.decisions


def test_explain_takes_no_backend() -> None:
    with pytest.raises(hadamard_fx.HadamardError, match="leave out backend="):
        hadamard_fx.explain(nn.Linear(16, 8), backend="inductor")
