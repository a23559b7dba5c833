"""quantize_kept against the formula in float64, and against figures that are known by hand."""

from __future__ import annotations

import pytest
import torch

from hadamard_fx.kernels import quantize_kept
from hadamard_fx.kernels.library import load
from hadamard_fx.kernels.quantize_kept import kept_rows, triangle

load()
OP = torch.ops.hadamard.quantize_kept

CASES = [
    (shape, order, rows, bits, rule, rounding)
    for shape, order in [((5, 64), 16), ((7, 197), 1), ((3, 33), 16), ((1, 1), 4), ((6, 96), 32), ((4, 256), 256)]
    for rows in ("all", "triangle")
    for bits, rule, rounding in [(8, "sawb", "nearest"), (4, "minmax", "stochastic"), (8, "minmax", "nearest")]
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_integers_and_scale_are_those_of_the_formula(case):
    """Sums of a transform differ by 1e-6 of a step at most times the order: next to no value changes its integer."""
    shape, order, *settings = case
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3
    seed = torch.tensor(77) if settings[-1] == "stochastic" else None
    q, scale = OP(x, seed, order, *settings)
    expected, expected_scale = quantize_kept.reference(x, None if seed is None else 77, order, *settings)
    assert q.dtype is torch.int8 and q.shape == expected.shape and q.is_contiguous()
    torch.testing.assert_close(scale.double(), expected_scale, rtol=2e-6, atol=0)
    differing = (q.double() - expected).abs()
    assert differing.max() <= 1
    assert differing.count_nonzero() <= max(1, q.numel() * 1e-4)
    fake = quantize_kept.fake(x, seed, order, *settings)
    assert (fake[0].shape, fake[1].shape) == (q.shape, scale.shape)


def test_triangle():
    assert triangle(16) == (4, 3, 2, 1)
    assert [kept_rows(order, "triangle") for order in (1, 2, 4, 8, 16, 64, 256)] == [1, 2, 3, 6, 10, 36, 136]
    assert kept_rows(16, "all") == 16


def test_kept_rows_are_orthonormal_and_smooth():
    """The constant is kept, the sequencies (3, 3) are not: what they are made of comes back, or vanishes."""
    smooth, rough = torch.ones(16), torch.tensor([1.0, -1.0, 1.0, -1.0])
    rough = torch.kron(rough, rough)
    for line, energy in ((smooth, 16.0), (rough, 0.0)):
        q, scale = OP(line[None], None, 16, "triangle", 8, "minmax", "nearest")
        assert float((q * scale).square().sum()) == pytest.approx(energy, rel=1e-6)
    full, scale = OP(rough[None], None, 16, "all", 8, "minmax", "nearest")
    assert float((full * scale).square().sum()) == pytest.approx(16.0, rel=1e-6)


def test_all_rows_stand_in_the_order_of_the_other_kernels():
    x = torch.randn(9, 80)
    found, _ = OP(x, None, 16, "all", 8, "minmax", "nearest")
    expected, _ = torch.ops.hadamard.quantize_rows(x, None, 16, 8, "tensor", "nearest", "int8")
    assert (found.int() - expected.int()).abs().max() <= 1
    assert (found != expected).float().mean() < 1e-2


def test_sawb_clips_a_gaussian_where_its_fit_says():
    """√(2/π) of a Gaussian's deviation is its mean magnitude: 12.1 − 12.2·0.798 = 2.37 deviations."""
    x = torch.randn(1 << 16, 16, generator=torch.Generator().manual_seed(0))
    q, scale = OP(x, None, 1, "all", 8, "sawb", "nearest")
    assert float(scale) * 127 == pytest.approx(12.1 - 12.2 * (2 / torch.pi) ** 0.5, rel=1e-2)
    assert float((q.abs() == 127).float().mean()) == pytest.approx(0.018, abs=2e-3)


def test_equal_magnitudes_are_not_clipped():
    x = torch.tensor([[2.0, -2.0] * 8])
    q, scale = OP(x, None, 1, "all", 8, "sawb", "nearest")
    torch.testing.assert_close(q * scale, x)


@pytest.mark.parametrize("rule", ["sawb", "minmax"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_number_is_no_plausible_one(rule, bad):
    x = torch.randn(4, 32)
    x[1, 3] = bad
    assert not OP(x, None, 16, "triangle", 8, rule, "nearest")[1].isfinite()


def test_zeros_and_nothing():
    q, scale = OP(torch.zeros(4, 32), None, 16, "triangle", 8, "sawb", "nearest")
    assert not q.any() and scale.isfinite().all()
    for shape in ((0, 16), (16, 0)):
        q, _ = OP(torch.zeros(shape), None, 16, "triangle", 8, "sawb", "nearest")
        assert q.numel() == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ((16, "some", 8, "sawb", "nearest"), "rows must be"),
        ((16, "all", 8, "mse", "nearest"), "rule minmax or sawb"),
        ((16, "all", 8, "sawb", "stochastic"), "needs a seed"),
    ],
)
def test_bad_arguments(settings, words):
    with pytest.raises(ValueError, match=words):
        quantize_kept.fake(torch.zeros(4, 32), None, *settings)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_same_integers_on_a_gpu(case):
    """The transform adds in the same order; the sums behind SAWB's moments are float64."""
    shape, order, *settings = case
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    seed = torch.tensor(77) if settings[-1] == "stochastic" else None
    expected, expected_scale = OP(x, seed, order, *settings)
    q, scale = OP(x.cuda(), None if seed is None else seed.cuda(), order, *settings)
    torch.testing.assert_close(scale.cpu(), expected_scale, rtol=1e-6, atol=0)
    differing = (q.cpu().int() - expected.int()).abs()
    assert differing.max() <= 1
    assert differing.count_nonzero() <= max(1, q.numel() * 1e-4)
