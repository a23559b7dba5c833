"""The integer recurrence equals the simulated one exactly, and both approach the net that they were made of."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hadamard_fx.errors import OptionError
from hadamard_fx.orthogonal.activations import _shift_half_even, quantize_activations
from hadamard_fx.orthogonal.recurrent import ORNNConfig, OrthogonalRNN


def made(seed: int = 0, bits: int | None = 4, **changes: object) -> OrthogonalRNN:
    torch.manual_seed(seed)
    sizes: dict[str, object] = {"inputs": 3, "hidden": 20, "outputs": 5, "bits": bits, **changes}
    model = OrthogonalRNN(ORNNConfig(**sizes))  # type: ignore[arg-type]
    if model.threshold is not None:
        torch.nn.init.uniform_(model.threshold, -0.2, 0.1)
    return model.eval()


@given(
    seed=st.integers(0, 2**16),
    weight_bits=st.integers(2, 8),
    bits=st.sampled_from([2, 6, 8, 10, 12, 16]),
    activation=st.sampled_from(["relu", "modrelu"]),
    per_channel=st.booleans(),
    range=st.sampled_from(["minmax", "mse", "lsq", "pact"]),
    exponent=st.integers(0, 12),
    louder=st.sampled_from([1.0, 10.0]),
)
@settings(max_examples=60, deadline=None)
def test_integers_equal_the_simulation(seed, weight_bits, bits, activation, per_channel, range, exponent, louder):
    model = made(seed, weight_bits, activation=activation, per_channel=per_channel, range=range)
    x = torch.randn(4, 12, 3)
    net = quantize_activations(model, x, bits, exponent)
    x = louder * x  # states and inputs beyond those of the calibration are clipped, by both alike
    states = net.integer_states(x)
    assert states.dtype == torch.int64 and states.abs().max() <= 2 ** (bits - 1) - 1
    assert torch.equal(states.double() * 2.0**-net.state_exponent, net.simulated_states(x))


@pytest.mark.parametrize("activation", ["relu", "modrelu"])
@pytest.mark.parametrize("every_step", [False, True], ids=["last", "every"])
def test_approaches_the_net_with_more_bits(activation, every_step):
    model = made(activation=activation, every_step=every_step)
    if model.threshold is not None:
        torch.nn.init.uniform_(model.threshold, -0.2, 0.0)  # a positive bias makes a jump at zero, which rounding finds
    x = torch.randint(-16, 17, (64, 10, 3)) / 16  # representable: only the states are rounded
    wanted = model(x).double()
    errors = []
    for bits in (6, 8, 10, 12):
        made_of_it = quantize_activations(model, x, bits)(x)
        assert made_of_it.shape == wanted.shape
        errors.append(((made_of_it - wanted).square().mean() / wanted.square().mean()).sqrt().item())
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 8 * errors[3] * 0.99
    assert errors[3] < 5e-3


def test_the_scale_is_a_power_of_two_that_clips_nothing_and_wastes_less_than_a_bit():
    model = made()
    x = torch.randn(16, 20, 3)
    net = quantize_activations(model, x, 12)
    alpha = float(net.output[0, 0] / model.output.weight[0, 0].detach())
    largest = model.states(x).abs().max().item() / alpha
    assert largest <= net.bound * 2.0**-net.state_exponent < 2 * largest


def test_one_step_by_fractions():
    """Two states, exact rational arithmetic by hand."""
    model = made(hidden=2, inputs=1, bits=3)
    net = quantize_activations(model, torch.ones(1, 3, 1), 6, 4)
    x = torch.full((1, 2, 1), 0.75)
    first, second = net.integer_states(x)[0]
    for row in (0, 1):
        driven = Fraction(int(net.input[row, 0]), 4) * Fraction(3, 4)
        assert int(first[row]) == round(max(driven, Fraction(0)) * Fraction(2) ** net.state_exponent)
        alpha = Fraction(int(net.multiplier[row])) / Fraction(2) ** net.multiplier_exponent
        kept = sum(int(net.recurrent[row, j]) * int(first[j]) for j in (0, 1)) * alpha / 4
        z = kept / Fraction(2) ** net.state_exponent + driven
        assert int(second[row]) == min(round(max(z, Fraction(0)) * Fraction(2) ** net.state_exponent), net.bound)


@given(value=st.integers(-(2**40), 2**40), places=st.integers(-4, 20))
@settings(deadline=None)
def test_shift_rounds_half_to_even(value, places):
    wanted = round(Fraction(value) / Fraction(2) ** places)
    assert _shift_half_even(torch.tensor([value]), places).item() == wanted


def test_codes_are_those_of_the_net():
    model = made(per_channel=True)
    net = quantize_activations(model, torch.randn(4, 5, 3))
    scale = net.multiplier.double() * 2.0 ** -(net.multiplier_exponent + 3)
    torch.testing.assert_close(scale[:, None] * net.recurrent, model.recurrent.double(), rtol=2.0**-13, atol=1e-7)
    assert dataclasses.is_dataclass(net) and net.recurrent.min() >= -8 and net.recurrent.max() <= 7


def test_refusals():
    x = torch.ones(1, 2, 3)
    with pytest.raises(OptionError, match="recurrent is not quantised"):
        quantize_activations(made(bits=None), x)
    with pytest.raises(OptionError, match="bits=17"):
        quantize_activations(made(), x, 17)
    with pytest.raises(OptionError, match="input_exponent=-1"):
        quantize_activations(made(), x, input_exponent=-1)
    with pytest.raises(OptionError, match="more than 53 bits"):
        quantize_activations(made(bits=16), 1e9 * x, 16, 16)
