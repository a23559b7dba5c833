"""The k-bit grid, its ranges and the gradients of each."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import parametrize

from hadamard_fx.errors import OptionError
from hadamard_fx.orthogonal.quantizers import RANGES, Quantizer, integers, minmax_range, mse_range, quantize


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_values_of_three_bits():
    weight = torch.tensor([[-1.0, -0.874, -0.375, -0.1, 0.0, 0.125, 0.376, 0.8, 1.0]])
    wanted = torch.tensor([[-1.0, -0.75, -0.5, 0.0, 0.0, 0.0, 0.5, 0.75, 0.75]])  # half to even; 1 is clipped
    assert torch.equal(quantize(weight, minmax_range(weight), 3), wanted)


@given(bits=st.integers(2, 12), seed=st.integers(0, 2**16), scale=st.floats(1e-3, 1e3), per_channel=st.booleans())
@settings(max_examples=60, deadline=None)
def test_error_is_half_a_step_and_the_top_a_whole_one(bits, seed, scale, per_channel):
    weight = scale * normal(6, 9, seed=seed)
    alpha = minmax_range(weight, per_channel)
    step = alpha / 2 ** (bits - 1)
    made = quantize(weight, alpha, bits)
    top = weight > alpha - step
    error = (made - weight).abs() / step
    assert error[~top].max() <= 0.5 + 1e-9
    assert error[top].numel() == 0 or error[top].max() <= 1 + 1e-9
    codes = integers(weight, alpha, bits)
    assert codes.min() >= -(2 ** (bits - 1)) and codes.max() <= 2 ** (bits - 1) - 1
    torch.testing.assert_close(quantize(made, alpha, bits), made)  # what is on the grid stays


@pytest.mark.parametrize("range", RANGES)
@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
def test_shape_type_and_number_of_levels(range, per_channel):
    weight = normal(7, 40).float()
    module = Quantizer(weight, 3, range, per_channel)
    made = module(weight)
    assert made.dtype == torch.float32 and made.shape == weight.shape
    assert module.alpha(weight).shape == ((7, 1) if per_channel else ())
    rows = made if per_channel else made.reshape(1, -1)
    assert all(len(row.unique()) <= 8 for row in rows)
    torch.testing.assert_close(made, quantize(weight, module.alpha(weight), 3))


@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
@pytest.mark.parametrize("bits", [3, 4, 6])
def test_mse_range_is_the_best(bits, per_channel):
    weight = normal(5, 64)
    best = mse_range(weight, bits, per_channel)
    found = (quantize(weight, best, bits) - weight).square().sum()
    for share in torch.linspace(0.21, 1.0, 37).tolist():
        other = (quantize(weight, share * minmax_range(weight, per_channel), bits) - weight).square().sum()
        assert found <= 1.02 * other  # the search has a grid of its own
    assert found < (quantize(weight, minmax_range(weight, per_channel), bits) - weight).square().sum()


@pytest.mark.parametrize("range", ["minmax", "mse"])
def test_gradient_goes_straight_through(range):
    weight = normal(6, 6).requires_grad_()
    module = Quantizer(weight, 3, range)
    sent = normal(6, 6, seed=1)
    (got,) = torch.autograd.grad(module(weight), weight, sent)
    assert torch.equal(got, sent)


@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
def test_gradient_of_the_learned_step(per_channel):
    """Against the formula of the paper, and against autograd through the detached rounding."""
    weight = normal(4, 50).requires_grad_()
    module = Quantizer(weight, 3, "lsq", per_channel)
    sent = normal(4, 50, seed=1)
    to_weight, to_step = torch.autograd.grad(module(weight), (weight, module.learned), sent)

    step = module.learned.detach().clone().requires_grad_()
    bounded = (weight / step).clamp(-4, 3)
    plain = (bounded + (bounded.round() - bounded).detach()) * step
    wanted_weight, wanted_step = torch.autograd.grad(plain, (weight, step), sent)
    torch.testing.assert_close(to_weight, wanted_weight)
    torch.testing.assert_close(to_step, wanted_step / math.sqrt((50 if per_channel else 200) * 3))


@pytest.mark.parametrize("per_channel", [False, True], ids=["tensor", "channel"])
def test_gradient_of_the_learned_clip(per_channel):
    weight = normal(4, 50).requires_grad_()
    module = Quantizer(weight, 4, "pact", per_channel)
    with torch.no_grad():
        module.learned.mul_(0.4)  # now some are clipped
    sent = normal(4, 50, seed=1)
    to_weight, to_clip = torch.autograd.grad(module(weight), (weight, module.learned), sent)

    clip = module.learned.detach().clone().requires_grad_()
    plain = torch.maximum(torch.minimum(weight, clip), -clip)
    wanted_weight, wanted_clip = torch.autograd.grad(plain, (weight, clip), sent)
    torch.testing.assert_close(to_weight, wanted_weight)
    torch.testing.assert_close(to_clip, wanted_clip)
    assert (to_weight == 0).any() and to_clip.abs().min() > 0


@pytest.mark.parametrize("kind", ["lsq", "pact"])
def test_a_learned_range_finds_a_smaller_error(kind):
    weight = normal(16, 16)
    module = Quantizer(weight, 3, kind).double()
    with torch.no_grad():
        module.learned.mul_(2.5)  # far too wide
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = (module(weight) - weight).square().sum()
        if kind == "pact":  # nothing is clipped at first: PACT needs its decay to get there
            loss = loss + 10 * module.learned.square()
        loss.backward()
        optimizer.step()
        losses.append((module(weight) - weight).square().sum().item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_learned_step_below_zero_is_its_mirror_image():
    weight = normal(3, 9)
    module = Quantizer(weight, 4, "lsq").double()
    before = module(weight)
    with torch.no_grad():
        module.learned.neg_()
    assert torch.equal(module(weight), before)


@pytest.mark.parametrize("range", RANGES)
def test_zero_weights_stay_zero(range):
    assert torch.equal(Quantizer(torch.zeros(3, 3), 4, range)(torch.zeros(3, 3)), torch.zeros(3, 3))


def test_parametrization_keeps_the_weight_before_rounding():
    layer = torch.nn.Linear(5, 4)
    weight = layer.weight.detach().clone()
    parametrize.register_parametrization(layer, "weight", Quantizer(weight, 3))
    assert torch.equal(layer.parametrizations.weight.original, weight)
    assert len(layer.weight.unique()) <= 8
    layer(torch.ones(2, 5)).sum().backward()
    assert torch.equal(layer.parametrizations.weight.original.grad, 2 * torch.ones(4, 5))


def test_refusals():
    weight = torch.ones(2, 2)
    with pytest.raises(OptionError, match="minmax, mse, lsq, pact, got 'max'"):
        Quantizer(weight, 4, "max")
    with pytest.raises(OptionError, match="from 2 to 16, got 1"):
        Quantizer(weight, 1)
    with pytest.raises(OptionError, match=r"two axes, got shape \(4,\)"):
        Quantizer(torch.ones(4), 4)
