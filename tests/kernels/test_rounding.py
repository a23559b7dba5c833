"""Rounding: the int32 form is the definition, draws are unbiased and uncorrelated, one seed one result."""

from __future__ import annotations

import pytest
import torch

from hadamard_fx.kernels import scaling
from hadamard_fx.kernels.rounding import dither, flat_index, reference_uniform, round_to_integer

CPU = torch.device("cpu")
COUNT = 1 << 20
DRAWS = (1024, 1024)


def draws(seed: int) -> torch.Tensor:
    """u - 1/2 of a [1024, 1024] result, float64."""
    index = flat_index(*DRAWS, CPU)
    offset = dither(torch.zeros(DRAWS), index, torch.tensor(seed), "stochastic")
    assert offset is not None
    return offset.double()


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 123456789012345])
def test_int32_arithmetic_is_the_definition(seed: int) -> None:
    index = torch.tensor([0, 1, 2, 15, 16, 65535, 65536, 2**31 - 1, -(2**31), -1], dtype=torch.int32)
    offset = dither(torch.zeros(10), index, torch.tensor(seed), "stochastic")
    assert offset is not None
    assert (offset + 0.5).tolist() == [reference_uniform(i & 0xFFFFFFFF, seed) for i in index.tolist()]


def test_flat_index_wraps() -> None:
    rows = flat_index(70000, 3, CPU)[-1].tolist()
    assert rows == [69999 * 3, 69999 * 3 + 1, 69999 * 3 + 2]


@pytest.mark.parametrize("seed", [0, 7919, -3])
def test_draws_are_uniform_and_uncorrelated(seed: int) -> None:
    """z-scores below 5: with a dozen statistics of one million draws, a false alarm has odds of 1 in 10^5."""
    u = draws(seed)
    assert abs(u.mean()) / (12**-0.5) * COUNT**0.5 < 5
    assert abs((u * u).mean() * 12 - 1) / (0.8**0.5) * COUNT**0.5 < 5
    flat = u.flatten()
    for lag in (1, 2, 3, 8, 16, 64, 768, 1024, 3072):
        assert abs((flat[lag:] * flat[:-lag]).mean()) * 12 * (COUNT - lag) ** 0.5 < 5, lag
    for other in (seed + 1, seed + 2, seed + 2**32, seed + 2**20):
        assert abs((u * draws(other)).mean()) * 12 * COUNT**0.5 < 5, other


@pytest.mark.parametrize("value", [0.0, 0.1, 0.5, 2.25, -0.3, -6.9, 101.7])
def test_stochastic_rounding_is_unbiased(value: float) -> None:
    """The standard error of one million draws is at most 0.5/1000: a bias of 2.5e-3 LSB would be seen at 5 sigma."""
    scaled = torch.full(DRAWS, value)
    q = round_to_integer(scaled, dither(scaled, flat_index(*DRAWS, CPU), torch.tensor(11), "stochastic"), 127)
    assert abs(q.double().mean() - scaled.double().mean()) < 2.5e-3
    assert set(q.unique().tolist()) <= {float(torch.tensor(value).floor()), float(torch.tensor(value).ceil())}


@pytest.mark.parametrize("scale", [1.0, 0.731])
@pytest.mark.parametrize("kind", ["uniform", "gaussian"])
@pytest.mark.parametrize("limit", [7, 127])
def test_pseudo_stochastic_bias(limit: int, kind: str, scale: float) -> None:
    """NITI's requirement: |bias| < 1e-3 LSB. The standard error is 0.4/√2^23 = 1.4e-4."""
    generator = torch.Generator().manual_seed(5)
    size = (1 << 23,)
    uniform = torch.rand(size, generator=generator) * 2 - 1
    scaled = uniform * limit if kind == "uniform" else torch.randn(size, generator=generator) * limit / 4
    offset = dither(scaled * scale, scaled.view(torch.int32), None, "pseudo_stochastic")
    q = round_to_integer(scaled, offset, 10 * limit)
    assert abs((q - scaled).double().mean()) < 1e-3
    assert abs((q - scaled).double().pow(2).mean() * 6 - 1) < 0.02  # variance 1/6: a uniform draw, not a constant


def test_nearest_is_half_to_even_and_clamped() -> None:
    scaled = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 200.0, -200.0])
    assert round_to_integer(scaled, None, 127).tolist() == [0, 2, 2, 0, -2, 127, -127]
    assert dither(scaled, scaled.view(torch.int32), None, "nearest") is None


def test_a_missing_seed_is_named() -> None:
    with pytest.raises(ValueError, match="needs a seed"):
        dither(torch.zeros(1), torch.zeros(1, dtype=torch.int32), None, "stochastic")


@pytest.mark.parametrize("bits", range(2, 9))
def test_headroom_keeps_every_rounding_on_the_grid(bits: int) -> None:
    """In float32, at the largest magnitude and the largest draw; without it, some leave the grid."""
    top, draw = scaling.qmax(bits), (2 - 2**-23) - 1.5
    amax = torch.rand(1_000_000, generator=torch.Generator().manual_seed(bits)) + 1
    factor, _ = scaling.scales(amax, bits, 16, "stochastic")
    for sign in (1, -1):
        assert ((amax * factor * sign + sign * draw).round().abs() <= top).all()
        assert ((amax * factor * sign - 0.5).round().abs() <= top).all()
    without = (amax * (torch.full_like(amax, top) / amax) + draw).round()
    assert bits == 2 or (without > top).any()  # 1 / amax · amax never rounds above 1
