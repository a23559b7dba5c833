"""What a plan says of convolutions, whatever their kind and whatever the scheme."""

from __future__ import annotations

import pytest
import torch
from harness import traced
from test_convolutions import CASES, HOT, drawn
from torch import nn

from hadamard_fx.plan import Role
from hadamard_fx.profiles import PROFILES


@pytest.mark.parametrize("case", CASES, ids=lambda name: name.replace(" ", "-"))
def test_the_plan_holds_the_unfolded_products(case: str) -> None:
    layer, x, _ = drawn(case, 0, False)
    compiled, trace = traced(nn.Sequential(layer, nn.Tanh()), HOT)
    compiled(x.requires_grad_()).sum().backward()
    tokens = layer(x).numel() // layer.out_channels
    under = layer.weight[0].numel()
    shapes = {d.gemm.role: (d.gemm.M.hint, d.gemm.N.hint, d.gemm.K.hint) for d in trace.decisions}
    assert shapes == {
        Role.FORWARD: (tokens, layer.out_channels, under),
        Role.GRAD_INPUT: (tokens, under, layer.out_channels),
        Role.GRAD_WEIGHT: (layer.out_channels, under, tokens),
    }
    for decision in trace.decisions:
        gemm = decision.gemm
        assert (gemm.layer, gemm.weight, gemm.op) == ("0", "0.weight", "convolution")
        assert gemm.window is not None and gemm.window.kernel == layer.kernel_size
        assert gemm.image.hint == x.numel() and gemm.flops == 2 * tokens * under * layer.out_channels


@pytest.mark.parametrize("profile", sorted(name for name, profile in PROFILES.items() if not profile.priced))
def test_schemes_know_nothing_of_convolutions(profile: str) -> None:
    """Whatever rewrites a linear layer rewrites a convolution: by direction the result is the exact one."""
    layer, x, gradient = drawn("3x3 stride 2", 0, False)
    x.requires_grad_()
    layer(x).backward(gradient)
    expected = [x.grad, *(p.grad for p in layer.parameters())]
    x.grad = None
    layer.zero_grad()
    compiled, trace = traced(layer, {"profile": profile})
    compiled(x).backward(gradient)
    found = [x.grad, *(p.grad for p in layer.parameters())]
    # Random g_y loses half of its energy to a rank cut: the cosine is √½ then, and 0.9 or more without one.
    for f, e in zip(found, expected, strict=True):
        assert float(torch.cosine_similarity(f.flatten(), e.flatten(), 0)) > 0.5  # type: ignore[union-attr]
    left = {d.gemm.role for d in trace.decisions if not d.rewritten}
    assert len(left) == 3 if profile in ("exact", "qornn") else left <= {Role.FORWARD}  # qornn: no recurrence here
    weights = [d.gemm for d in trace.decisions if d.gemm.role is Role.GRAD_WEIGHT]
    assert [gemm.sequence for gemm in weights] == [layer(x)[0, 0].numel()]
