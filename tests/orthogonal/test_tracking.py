"""The distance from orthogonality, and the check values for quantised random orthogonal matrices."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest
import torch
from torch.nn.utils import parametrize

from hadamard_fx.errors import OptionError
from hadamard_fx.orthogonal.bjorck import Bjorck
from hadamard_fx.orthogonal.quantizers import Quantizer, minmax_range, mse_range, quantize
from hadamard_fx.orthogonal.tracking import Tracker, orthogonality


def random_orthogonal(size: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed)))[0]


def mean_gap(matrices: list[torch.Tensor], bits: int, range_of: Callable[[torch.Tensor], torch.Tensor]) -> float:
    return statistics.mean(orthogonality(quantize(m, range_of(m), bits)).gap for m in matrices)


def test_against_the_norm():
    weight = torch.randn(9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = orthogonality(weight)
    gap = torch.linalg.matrix_norm(weight @ weight.mT - torch.eye(9), 2)
    assert found.gap == pytest.approx(gap.item())
    assert found.largest == pytest.approx(torch.linalg.matrix_norm(weight, 2).item())
    assert found.smallest == pytest.approx(torch.linalg.matrix_norm(weight, -2).item())
    assert "singular values" in str(found)
    assert orthogonality(random_orthogonal(64, 0)).gap < 1e-5


@pytest.mark.parametrize(
    ("bits", "minmax", "mse"), [(3, 1.35, 0.55), (4, 0.60, 0.31), (5, 0.28, 0.20), (6, 0.13, 0.15), (8, 0.03, 0.08)]
)
def test_check_values(bits, minmax, mse):
    """All ten within 5 % (and the half unit of two decimals): means of two draws whose extreme weight is about 5/√n.

    That weight sets the min-max range, and clipping it the gap of the other range at 8 bits. Most draws have a smaller
    one: those of ``test_typical_draws`` are up to a third below the check values.
    """
    extreme = [random_orthogonal(256, seed) for seed in (12, 13)]
    assert all(4.8 < 16 * float(matrix.abs().max()) < 5.2 for matrix in extreme)
    assert mean_gap(extreme, bits, minmax_range) == pytest.approx(minmax, rel=0.05, abs=0.005)
    assert mean_gap(extreme, bits, lambda matrix: mse_range(matrix, bits)) == pytest.approx(mse, rel=0.05, abs=0.005)


@pytest.mark.parametrize(("bits", "minmax", "mse"), [(3, 1.10, 0.54), (4, 0.49, 0.30), (6, 0.11, 0.11)])
def test_typical_draws(bits, minmax, mse):
    """Within 15 % of the means over 24 draws in docs/orthogonal.md."""
    draws = [random_orthogonal(256, seed) for seed in range(3)]
    assert mean_gap(draws, bits, minmax_range) == pytest.approx(minmax, rel=0.15)
    assert mean_gap(draws, bits, lambda matrix: mse_range(matrix, bits)) == pytest.approx(mse, rel=0.15)


def test_tracker_sees_the_quantised_matrix_and_changes_nothing():
    layer = torch.nn.Linear(16, 16, bias=False)
    torch.nn.init.orthogonal_(layer.weight)
    parametrize.register_parametrization(layer, "weight", Bjorck((16, 16)))
    parametrize.register_parametrization(layer, "weight", Quantizer(layer.weight, 3))
    chain = layer.parametrizations.weight
    chain[1].eval()  # some parts may be frozen
    tracker = Tracker(layer, "weight", every=2)
    before = chain[0].vector.clone()
    for _ in range(3):
        tracker.record()
    assert torch.equal(chain[0].vector, before)
    assert [part.training for part in chain.modules()] == [True, True, False]
    assert [row["step"] for row in tracker.to_json()] == [0, 2]
    assert tracker.history[0][1] == orthogonality(layer.weight)
    assert 0.1 < tracker.history[0][1].gap < 2


def test_tracker_of_a_plain_matrix():
    layer = torch.nn.Linear(3, 3, bias=False)
    tracker = Tracker(layer, "weight")
    tracker.record()
    assert tracker.history == [(0, orthogonality(layer.weight))]


def test_refuses_what_is_not_square():
    with pytest.raises(OptionError, match=r"square matrix, got shape \(2, 3\)"):
        orthogonality(torch.ones(2, 3))
