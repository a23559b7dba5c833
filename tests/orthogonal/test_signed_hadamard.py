"""HadamRNN's recurrent matrix: exactly orthogonal, of signs, and what its latent vector learns."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.utils import parametrize

from hadamard_fx.errors import OptionError
from hadamard_fx.kernels.walsh import sylvester, walsh_reference
from hadamard_fx.orthogonal.activations import quantize_activations
from hadamard_fx.orthogonal.recurrent import ORNNConfig, OrthogonalRNN, optimizers
from hadamard_fx.orthogonal.signed_hadamard import SignedHadamard, fast_walsh_hadamard


def recursion(order: int) -> torch.Tensor:
    """Sylvester: H_2n = [[H, H], [H, −H]]."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < order:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


@pytest.mark.parametrize("order", [2, 8, 64, 512])
def test_the_fast_transform_and_the_matrix_are_sylvesters(order):
    assert torch.equal(sylvester(order, torch.device("cpu"), torch.float64), recursion(order))
    whole = torch.randint(-99, 99, (3, 2, order))
    assert torch.equal(fast_walsh_hadamard(whole), whole @ recursion(order).long())
    assert sorted(map(tuple, walsh_reference(order).tolist())) == sorted(map(tuple, recursion(order).tolist()))


@pytest.mark.parametrize("order", [2, 16, 256])
def test_exactly_orthogonal_and_of_one_magnitude(order):
    codes = SignedHadamard(order).codes(torch.randn(order))
    assert torch.equal(codes @ codes.T, order * torch.eye(order))  # whole numbers below 2^24: exact
    assert codes.abs().eq(1).all()


def test_gradient_of_the_signs():
    """∂loss/∂u_i = Σ_j g_ij H_ij/√d where |u_i| ≤ 1, else 0."""
    u = torch.tensor([0.5, -0.2, 1.5, -3.0], dtype=torch.float64, requires_grad=True)
    g = torch.randn(4, 4, dtype=torch.float64)
    (SignedHadamard(4)(u) * g).sum().backward()
    torch.testing.assert_close(u.grad, (g * recursion(4)).sum(1) / 2 * torch.tensor([1.0, 1.0, 0.0, 0.0]))


def made(**changes):
    torch.manual_seed(0)
    return OrthogonalRNN(ORNNConfig(**{"inputs": 3, "hidden": 16, "outputs": 5, "training": "hadamard", **changes}))


@pytest.mark.parametrize("bits", [None, 4])
def test_a_step_is_a_fast_transform(bits):
    model, x = made(bits=bits).double(), torch.randn(4, 7, 3, dtype=torch.float64)
    signs, h = model.recurrent_parameter().detach().sign(), torch.zeros(4, 16, dtype=torch.float64)
    for t in range(7):
        h = torch.relu(signs * fast_walsh_hadamard(h) / 4 + x[:, t] @ model.input.detach().T)
    torch.testing.assert_close(model(x), model.output(h))
    assert len(model.input.unique()) <= 16 or bits is None


def test_assigning_a_matrix_takes_the_nearest_signs():
    model = made()
    wanted = SignedHadamard(16)(torch.randn(16))
    model.recurrent = wanted
    torch.testing.assert_close(model.recurrent, wanted)
    assert model.parametrizations.recurrent.original.shape == (16,)
    assert parametrize.is_parametrized(model, "recurrent")


def test_training_lowers_the_loss():
    model = made(bits=6, hidden=32)
    (stepper,) = optimizers(model, lr=0.02)
    x = torch.randn(64, 6, 3, generator=torch.Generator().manual_seed(1))
    target, losses, before = (x[:, 0, 0] > 0).long(), [], model.recurrent.detach().clone()
    for _ in range(80):
        loss = torch.nn.functional.cross_entropy(model(x), target)
        stepper.zero_grad()
        loss.backward()
        stepper.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert not torch.equal(model.recurrent, before)  # signs have changed


@pytest.mark.parametrize("activation", ["relu", "modrelu"])
def test_a_recurrence_of_integers(activation):
    model, x = made(bits=5, activation=activation), torch.rand(4, 9, 3)
    net = quantize_activations(model, x, bits=12)
    states = net.integer_states(x)
    assert torch.equal(states.double() * 2.0**-net.state_exponent, net.simulated_states(x))
    assert net.recurrent.abs().eq(1).all()
    assert (net(x) - model(x)).abs().max() < 0.05 * model(x).abs().max()
    with pytest.raises(OptionError, match="make the net with bits"):
        quantize_activations(made(), x)


@pytest.mark.parametrize("size", [1, 12])
def test_other_sizes_are_refused(size):
    with pytest.raises(OptionError, match=f"power of two of at least 2, got {size}"):
        SignedHadamard(size)


def test_magnitude():
    assert made(hidden=64).recurrent.abs().max().item() == pytest.approx(1 / math.sqrt(64))
