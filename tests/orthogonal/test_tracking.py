"""The distance from orthogonality, and the check values for quantised random orthogonal matrices."""

from __future__ import annotations

import statistics

import pytest
import torch
from torch.nn.utils import parametrize

from hadamard_fx.errors import OptionError
from hadamard_fx.orthogonal.bjorck import Bjorck
from hadamard_fx.orthogonal.quantizers import Quantizer, minmax_range, mse_range, quantize
from hadamard_fx.orthogonal.tracking import Tracker, orthogonality


def random_orthogonal(size: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed)))[0]


MATRICES = [random_orthogonal(256, seed) for seed in range(3)]


def test_against_the_norm():
    weight = torch.randn(9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = orthogonality(weight)
    gap = torch.linalg.matrix_norm(weight @ weight.mT - torch.eye(9), 2)
    assert found.gap == pytest.approx(gap.item())
    assert found.largest == pytest.approx(torch.linalg.matrix_norm(weight, 2).item())
    assert found.smallest == pytest.approx(torch.linalg.matrix_norm(weight, -2).item())
    assert "singular values" in str(found)
    assert orthogonality(MATRICES[0]).gap < 1e-5


@pytest.mark.parametrize(
    ("bits", "minmax", "mse"), [(3, 1.35, 0.55), (4, 0.60, 0.31), (5, 0.28, 0.20), (6, 0.13, 0.15), (8, 0.03, 0.08)]
)
def test_check_values(bits, minmax, mse):
    """Means over three draws; the check values are of one, whose extreme weight sets the min-max range: 24 % there.

    The MSE range: 15 % at 3, 4 and 5 bits. At 6 and 8 bits what remains comes from the few clipped weights, hence from
    where the search ends, and the minimum over 0.2..1 of max|W| is better than the check value. At 8 bits that value
    belongs to a search that stops at 0.8 max|W|, as shown in the test below.
    """

    def gap(alphas: list[torch.Tensor]) -> float:
        pairs = zip(MATRICES, alphas, strict=True)
        return statistics.mean(orthogonality(quantize(matrix, alpha, bits)).gap for matrix, alpha in pairs)

    assert gap([minmax_range(matrix) for matrix in MATRICES]) == pytest.approx(minmax, rel=0.24)
    found = gap([mse_range(matrix, bits) for matrix in MATRICES])
    if bits <= 5:
        assert found == pytest.approx(mse, rel=0.15)
    else:
        assert 0.4 * mse < found < mse


def test_the_check_value_of_eight_bits_clips_too_much():
    matrix = MATRICES[0]
    clipped = 0.8 * minmax_range(matrix)
    assert orthogonality(quantize(matrix, clipped, 8)).gap == pytest.approx(0.08, rel=0.15)
    error = (quantize(matrix, clipped, 8) - matrix).square().sum()
    assert error > 1.05 * (quantize(matrix, mse_range(matrix, 8), 8) - matrix).square().sum()


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
