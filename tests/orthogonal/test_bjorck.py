"""Björck's iteration against the polar factor of a float64 SVD, and the parametrization."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils import parametrize

from hadamard_fx.errors import OptionError
from hadamard_fx.orthogonal.bjorck import Bjorck, bjorck, spectral_norm


def with_singular_values(values: torch.Tensor, seed: int) -> torch.Tensor:
    """U diag(values) Vᵀ of random orthogonal U and V, float64."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))[0]
        for _ in range(2)
    )
    return left @ torch.diag(values) @ right.mT


def polar(matrix: torch.Tensor) -> torch.Tensor:
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


@pytest.mark.parametrize("shape", [(16, 16), (16, 24), (24, 16)], ids=str)
def test_norm_from_any_start(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    start = torch.randn(shape[1], dtype=torch.float64)
    norm, vector = spectral_norm(matrix, start, 300)
    torch.testing.assert_close(norm, torch.linalg.matrix_norm(matrix, 2))
    assert spectral_norm(matrix, start, 3)[0] < norm  # from below
    torch.testing.assert_close(torch.linalg.vector_norm(matrix @ vector), norm)


def test_gradient_of_the_norm():
    torch.manual_seed(0)
    matrix = torch.randn(8, 8, dtype=torch.float64, requires_grad=True)
    norm, _ = spectral_norm(matrix, torch.ones(8, dtype=torch.float64), 500)
    wanted = torch.autograd.grad(torch.linalg.matrix_norm(matrix, 2), matrix)[0]
    torch.testing.assert_close(torch.autograd.grad(norm, matrix)[0], wanted)


@given(seed=st.integers(0, 2**16), smallest=st.floats(0.02, 1.0), size=st.integers(1, 24))
@settings(max_examples=40, deadline=None)
def test_converges_to_the_polar_factor(seed, smallest, size):
    matrix = with_singular_values(torch.linspace(smallest, 1.0, size, dtype=torch.float64), seed)
    torch.testing.assert_close(bjorck(matrix), polar(matrix), rtol=0, atol=1e-9)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)], ids=str)
def test_rectangular(shape):
    torch.manual_seed(1)
    matrix = torch.randn(shape, dtype=torch.float64)
    matrix = matrix / torch.linalg.matrix_norm(matrix, 2)
    torch.testing.assert_close(bjorck(matrix, 30), polar(matrix), rtol=0, atol=1e-10)


def test_norm_may_be_underestimated_up_to_root_three_but_not_more():
    below, above = (torch.full((1, 1), value, dtype=torch.float64) for value in (1.72, 1.75))
    assert bjorck(below, 40).item() == pytest.approx(1.0)
    assert bjorck(above, 1).item() < 0  # the singular vector turns round: this is no polar factor


def test_gradient_runs_through_all_steps():
    torch.manual_seed(2)
    matrix = (0.3 * torch.eye(4, dtype=torch.float64) + 0.05 * torch.randn(4, 4, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(bjorck, matrix)
    weight = torch.randn(4, 4, dtype=torch.float64)
    found = torch.autograd.grad((bjorck(matrix, 40) * weight).sum(), matrix)[0]
    wanted = torch.autograd.grad((polar(matrix) * weight).sum(), matrix)[0]
    torch.testing.assert_close(found, wanted)


def test_parametrization():
    torch.manual_seed(3)
    layer = torch.nn.Linear(32, 32, bias=False).double()
    torch.nn.init.orthogonal_(layer.weight)
    latent = layer.weight.detach().clone()
    parametrize.register_parametrization(layer, "weight", Bjorck((32, 32), dtype=torch.float64))
    torch.testing.assert_close(layer.weight, latent, rtol=0, atol=1e-12)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        (layer.weight - 0.1).square().sum().backward()
        optimizer.step()
    moved = layer.parametrizations.weight.original.detach()
    assert (moved - latent).abs().max() > 0.1
    torch.testing.assert_close(layer.weight @ layer.weight.mT, torch.eye(32).double(), rtol=0, atol=1e-5)


def test_evaluation_changes_no_state():
    torch.manual_seed(4)
    made = Bjorck((8, 8))
    matrix = torch.randn(8, 8)
    before = made.vector.clone()
    made.eval()(matrix)
    assert torch.equal(made.vector, before)
    made.train()(matrix)
    assert not torch.equal(made.vector, before)


@pytest.mark.parametrize("keywords", [{"iterations": 0}, {"steps": 0}, {"beta": 0.6}, {"beta": 0.0}], ids=str)
def test_refusals(keywords):
    with pytest.raises(OptionError, match="beta in"):
        Bjorck((4, 4), **keywords)


def test_refuses_other_shapes():
    with pytest.raises(OptionError, match="two axes"):
        Bjorck((4,))  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"\(4, 4\), got \(5, 5\)"):
        Bjorck((4, 4))(torch.eye(5))
