"""The baselines ``int4`` and ``int8``: integers with one scale per tensor and no transform, in exact sums."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from harness import gradients, traced
from torch import nn

from hadamard_fx.plan import Role
from hadamard_fx.profiles import PROFILES


def rounded(x: torch.Tensor, bits: int) -> torch.Tensor:
    """The nearest of 2^bits - 1 points up to max|x|, float64."""
    step = x.double().abs().max() / (2 ** (bits - 1) - 1)
    return (x.double() / step).round() * step


@pytest.mark.parametrize("bits", [4, 8])
def test_products_are_those_of_the_rounded_operands(bits: int) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(40, 24, bias=False), torch.randn(70, 40, requires_grad=True)
    profile = PROFILES[f"int{bits}"]
    nearest: dict[str, Any] = {
        "grad_input": replace(profile.grad_input[0], rounding="nearest"),  # type: ignore[type-var]
        "grad_weight": replace(profile.grad_weight[0], rounding="nearest"),  # type: ignore[type-var]
    }
    function, trace = traced(layer, {"profile": f"int{bits}", **nearest})
    found = gradients(function, layer, x)
    assert {d.gemm.role for d in trace.decisions if d.rewritten} == {Role.FORWARD, Role.GRAD_INPUT, Role.GRAD_WEIGHT}
    y = rounded(x, bits) @ rounded(layer.weight, bits).t()
    torch.testing.assert_close(function(x).double(), y, rtol=1e-5, atol=1e-6)
    g_y = rounded(2 * y / y.numel(), bits)
    # Integers of few bits are the operands of the gradients, too: rounding them again moves nothing.
    torch.testing.assert_close(found["input 0"].double(), g_y @ rounded(layer.weight, bits), rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(found["weight"].double(), g_y.t() @ rounded(x, bits), rtol=1e-4, atol=1e-8)


def test_inputs_that_are_never_negative_use_the_whole_range() -> None:
    """x >= 0 has 255 steps and rounds to half of one, below what 127 steps would leave."""
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 8, bias=False).requires_grad_(False), torch.rand(50, 64)
    function, _ = traced(layer, {"profile": "int8"})
    with torch.no_grad():
        error = (function(x).double() - x.double() @ rounded(layer.weight, 8).t()).norm()
    coarse = (rounded(x, 8) @ rounded(layer.weight, 8).t() - x.double() @ rounded(layer.weight, 8).t()).norm()
    assert error < 0.75 * coarse


@pytest.mark.parametrize("bits", [4, 8])
def test_the_saved_operand_is_the_integers(bits: int) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(32, 64), nn.Sigmoid(), nn.Linear(64, 16))
    function, trace = traced(module, {"profile": f"int{bits}"})
    gradients(function, module, torch.randn(48, 32, requires_grad=True))
    outputs = trace.forward[0].graph.find_nodes(op="output")[0].all_input_nodes
    kept = {
        (tuple(n.meta["val"].shape), n.meta["val"].dtype) for n in outputs if isinstance(n.meta["val"], torch.Tensor)
    }
    assert any(shape == (48, 32) and dtype in (torch.int8, torch.int16) for shape, dtype in kept)
    assert ((48, 32), torch.float32) not in kept
