"""Random signs of tokens: their draws, and that a rank cut behind them is unbiased."""

from __future__ import annotations

import pytest
import torch

from hadamard_fx.kernels.library import load
from hadamard_fx.kernels.signs import reference_signs, token_signs

KERNELS = load()


@pytest.mark.parametrize("seed", [0, 1, -1, 2**62 + 5])
def test_one_definition(seed: int) -> None:
    found = token_signs(1000, torch.tensor(seed))
    assert torch.equal(found.double(), reference_signs(1000, seed))
    assert found.abs().eq(1).all() and abs(float(found.mean())) < 0.1


def test_neighbours_and_seeds_are_independent() -> None:
    signs = torch.cat([token_signs(4096, torch.tensor(seed)) for seed in range(64)], 1)
    for lag in (1, 2, 4, 8, 15):
        assert abs(float((signs[lag:] * signs[:-lag]).mean())) < 4 / (4096 * 64) ** 0.5, lag
    assert abs(float((signs[:, 1:] * signs[:, :-1]).mean())) < 4 / (4096 * 63) ** 0.5


def weight_gradient(gradient: torch.Tensor, x: torch.Tensor, rank: int, signs: torch.Tensor | None) -> torch.Tensor:
    settings = (16, rank, 8, "channel", "nearest", 0, False, signs)
    (left, a, _), (right, b, _) = (KERNELS["compress_tokens"].op(operand, None, *settings) for operand in (gradient, x))
    return (left.double() * a.t()) @ (right.double() * b.t()).t()


@pytest.mark.parametrize("rank", [4, 8, 12])
def test_the_mean_over_seeds_is_the_product(rank: int) -> None:
    """Tokens that have nothing in common but their mean, of which a low-pass filter keeps the wrong part."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 24, generator=generator)
    gradient = x[:, :20] + 0.1 * torch.randn(512, 20, generator=generator)
    exact = gradient.double().t() @ x.double()
    seeds = [torch.tensor(seed) for seed in range(400)]
    draws = torch.stack([weight_gradient(gradient, x, rank, seed) for seed in seeds])
    deviation = (draws - exact).norm() / (len(seeds) ** 0.5 * exact.norm())
    # The noise of one draw, shrunk by the square root of their number, and the rounding's.
    assert (draws.mean(0) - exact).norm() / exact.norm() < 1.5 * deviation / len(seeds) ** 0.5 + 5e-3
    filtered = weight_gradient(gradient, x, rank, None)
    assert (filtered - exact).norm() / exact.norm() > 5 * (draws.mean(0) - exact).norm() / exact.norm()
