"""projUNN in the span of the update against a dense SVD and matrix exponential, float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hadamard_fx.errors import OptionError
from hadamard_fx.orthogonal.projunn import ProjUNN, direct, rank_one, tangent


def problem(seed: int, size: int, length: float = 1.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    matrix, a, b = (torch.randn(*shape, generator=generator).double() for shape in ((size, size), (size,), (size,)))
    return torch.linalg.qr(matrix)[0], length * a, b


def nearest(matrix: torch.Tensor) -> torch.Tensor:
    left, _, right = torch.linalg.svd(matrix)
    return left @ right


def geodesic(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    update = weight.mT @ torch.outer(a, b)
    return weight @ torch.linalg.matrix_exp(0.5 * (update - update.mT))


CASES = [(direct, lambda w, a, b: nearest(w + torch.outer(a, b))), (tangent, geodesic)]


@pytest.mark.parametrize(("fast", "dense"), CASES, ids=["D", "T"])
@given(seed=st.integers(0, 2**16), size=st.integers(2, 20), exponent=st.floats(-6, 0.5))
@settings(max_examples=60, deadline=None)
def test_equals_the_dense_form(fast, dense, seed, size, exponent):
    weight, a, b = problem(seed, size, 10**exponent)
    update = torch.linalg.svdvals(weight + torch.outer(a, b))
    if update[-1] > 1e-3:  # nearer to a singular matrix the nearest orthogonal one is not determined
        torch.testing.assert_close(fast(weight, a, b), dense(weight, a, b), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("fast", "dense"), CASES, ids=["D", "T"])
@pytest.mark.parametrize("factor", [0.3, -0.3, -1.5, 0.0], ids=lambda value: f"b={value}u")
def test_update_along_one_line(fast, dense, factor):
    weight, a, _ = problem(0, 9)
    a = a / a.norm()
    b = factor * (weight.mT @ a)
    torch.testing.assert_close(fast(weight, a, b), dense(weight, a, b), rtol=0, atol=1e-12)


@pytest.mark.parametrize("fast", [direct, tangent])
def test_nothing_moves_without_an_update(fast):
    weight, a, b = problem(1, 7)
    assert torch.equal(fast(weight, 0 * a, b), weight)


def test_determinant_may_flip_in_the_direct_variant_only():
    weight, a, _ = problem(2, 6)
    b = -3 * (weight.mT @ a) / a.square().sum()
    determinant = torch.linalg.det(weight)
    torch.testing.assert_close(torch.linalg.det(direct(weight, a, b)), -determinant)
    torch.testing.assert_close(torch.linalg.det(tangent(weight, a, b)), determinant)


@pytest.mark.parametrize("iterations", [None, 60], ids=["svd", "power"])
@pytest.mark.parametrize("shape", [(12, 12), (8, 15)], ids=str)
def test_rank_one_is_the_best(iterations, shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    a, b = rank_one(matrix, iterations)
    left, values, right = torch.linalg.svd(matrix)
    torch.testing.assert_close(torch.outer(a, b), values[0] * torch.outer(left[:, 0], right[0]), rtol=0, atol=1e-3)
    torch.testing.assert_close(b.norm(), torch.ones((), dtype=torch.float64))


@pytest.mark.parametrize("iterations", [None, 4], ids=["svd", "power"])
def test_rank_one_of_nothing(iterations):
    a, b = rank_one(torch.zeros(5, 5), iterations)
    assert torch.equal(torch.outer(a, b), torch.zeros(5, 5))


@pytest.mark.parametrize("variant", ["D", "T"])
@pytest.mark.parametrize("alpha", [0.0, 0.99], ids=["sgd", "rms"])
def test_descends_on_the_manifold(variant, alpha):
    torch.manual_seed(1)
    target = torch.linalg.qr(torch.randn(16, 16))[0]
    weight = torch.nn.Parameter(torch.linalg.qr(target + 0.1 * torch.randn(16, 16))[0])
    if torch.linalg.det(weight) * torch.linalg.det(target) < 0:
        raise AssertionError("choose another seed: no path leads from one to the other")
    signs = torch.sign((weight.detach() * target).sum(0))
    target = target * signs  # qr may have turned columns
    optimizer = ProjUNN([weight], lr=3.2 if alpha == 0 else 0.2, variant=variant, alpha=alpha, refresh=50)
    losses = []
    for _ in range(300):
        optimizer.zero_grad()
        loss = (weight - target).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    torch.testing.assert_close(weight @ weight.mT, torch.eye(16), rtol=0, atol=2e-6)


def test_the_rate_is_divided_by_32():
    weight, _, _ = problem(3, 6)
    gradient = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moved = torch.nn.Parameter(weight.clone())
    moved.grad = gradient
    ProjUNN([moved], lr=0.64, iterations=None, alpha=0).step()
    a, b = rank_one(gradient, None)
    torch.testing.assert_close(moved.detach(), nearest(weight - 0.02 * torch.outer(a, b)), rtol=0, atol=1e-12)


def test_first_step_of_the_mean_square_has_the_length_of_the_signs():
    weight, _, _ = problem(4, 6)
    moved = torch.nn.Parameter(weight.clone())
    moved.grad = torch.full((6, 6), 1e-3, dtype=torch.float64)
    ProjUNN([moved], lr=0.32, variant="T").step()
    ones = torch.ones(6, dtype=torch.float64)
    torch.testing.assert_close(moved.detach(), geodesic(weight, -0.01 * ones, ones), rtol=0, atol=1e-6)


def test_refresh_takes_rounding_errors_away():
    weight, _, _ = problem(5, 8)
    off = weight + 1e-4 * torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gaps = []
    for refresh in (0, 1):
        moved = torch.nn.Parameter(off.clone())
        moved.grad = torch.zeros(8, 8, dtype=torch.float64)
        ProjUNN([moved], refresh=refresh).step()
        gaps.append((moved @ moved.mT - torch.eye(8)).abs().max().item())
    assert gaps[0] > 1e-4 and gaps[1] < 1e-6


@pytest.mark.parametrize(
    "keywords",
    [{"variant": "E"}, {"lr": -1.0}, {"divisor": 0.0}, {"alpha": 1.0}, {"refresh": -1}, {"iterations": 0}],
    ids=str,
)
def test_refusals(keywords):
    with pytest.raises(OptionError, match="ProjUNN"):
        ProjUNN([torch.nn.Parameter(torch.eye(3))], **keywords)


@pytest.mark.parametrize("weight", [torch.ones(3, 3), torch.ones(3, 4), torch.ones(3)], ids=lambda w: str(w.shape))
def test_refuses_what_is_not_orthogonal(weight):
    with pytest.raises(OptionError, match=r"not orthogonal|square"):
        ProjUNN([torch.nn.Parameter(weight)])
