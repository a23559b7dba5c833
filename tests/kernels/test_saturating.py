"""HDQT's kernels: clipped integers against the equations, sums that saturate, counts, and the published shares."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from hadamard_fx.errors import KernelError
from hadamard_fx.kernels import library, quantize_clipped, saturating_mm, saturation
from hadamard_fx.kernels.quantize_clipped import largest_order
from hadamard_fx.saturating import accumulator_limit

library.load()
QUANTIZE = torch.ops.hadamard.quantize_clipped
PRODUCT = torch.ops.hadamard.saturating_mm
SEED = torch.tensor(-(2**40) + 12345)


def quantized(x: torch.Tensor, order: int, bits: int, rounding: str = "nearest", unsigned: bool = False, **more: Any):
    seed = SEED if rounding == "stochastic" else None
    arguments = (order, bits, 0.975, rounding, unsigned)
    found = QUANTIZE(x, more.get("scale"), seed, *arguments)
    scale = more["scale"].item() if "scale" in more else None
    return found, quantize_clipped.reference(x, scale, None if seed is None else seed.item(), *arguments)


@pytest.mark.parametrize(("extent", "order"), [(768, 256), (3072, 1024), (405, 1), (64, 64), (1, 1), (0, 1), (197, 1)])
def test_the_largest_order(extent: int, order: int) -> None:
    assert largest_order(extent) == order


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("order", [1, 2, 16, 0], ids=["1", "2", "16", "largest"])
@pytest.mark.parametrize("shape", [(5, 48), (7, 20), (3, 405)], ids=str)
def test_integers_and_scale(shape: tuple[int, int], order: int, bits: int, rounding: str) -> None:
    """Equal but for one step where float32 rounds a value across the boundary: at most 1 in 1000 elements."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(shape[1]))
    (q, scale), (expected, exact) = quantized(x, order, bits, rounding)
    difference = (q.double() - expected).abs()
    assert q.dtype is torch.int8 and difference.max() <= 1 and difference.mean() <= 1e-3
    assert q.abs().max() == 2 ** (bits - 1) - 1  # the largest magnitude is clipped to the end of the range
    torch.testing.assert_close(scale.double(), exact, rtol=1e-6, atol=0)
    reached = order or largest_order(shape[1])
    width = -(-shape[1] // reached) * reached
    assert q.shape == (shape[0], width) and q.is_contiguous()


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_integers_of_integers_are_exact(bits: int) -> None:
    """H x̂ is exact in float32, so the integers equal the reference's; the scales multiply."""
    x = torch.randn(24, 96, generator=torch.Generator().manual_seed(1)).relu()
    (q, scale), _ = quantized(x, 1, bits, unsigned=True)
    assert q.min() == 0 and q.max() == 2**bits - 1 and q.dtype is (torch.int16 if bits == 8 else torch.int8)
    (again, both), (expected, exact) = quantized(q.t(), 0, bits, scale=scale)
    assert (again.double() - expected).abs().mean() <= 1e-3
    torch.testing.assert_close(both.double(), exact, rtol=1e-6, atol=0)
    step = 0.975 * x.max() / (2**bits - 1)
    assert (q * scale - x).abs()[x <= 0.975 * x.max()].max() <= 0.5001 * step


@pytest.mark.parametrize("value", [-1e-3, 0.0])
def test_the_range_starts_at_zero_only_where_nothing_is_negative(value: float) -> None:
    x = torch.rand(8, 16)
    x[0, 0] = value
    (q, scale), (_, exact) = quantized(x, 1, 4, unsigned=True)
    assert q.max() == (15 if value == 0 else 7)
    torch.testing.assert_close(scale.double(), exact, rtol=1e-6, atol=0)
    assert torch.ops.hadamard.quantize_clipped(x, None, None, 1, 4, 0.975, "nearest", False)[0].max() == 7


def test_stochastic_rounding_has_no_bias() -> None:
    """Mean of 2^17 roundings of one value: within 5 standard errors, 5 · 0.5 / √2^17 = 0.007 steps."""
    x = torch.full((2**10, 2**7), 0.3)
    x[0, 0] = 10.0
    q, scale = QUANTIZE(x, None, SEED, 1, 4, 1.0, "stochastic", False)
    assert abs(float((q.flatten()[1:] * scale.item()).mean()) - 0.3) / scale.item() < 0.007


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("order", [1, 16])
def test_what_is_not_finite_stays_so(order: int, value: float) -> None:
    x = torch.randn(4, 32)
    x[1, 3] = value
    q, scale = QUANTIZE(x, None, None, order, 4, 0.975, "nearest", True)
    assert not (q * scale).isfinite().all()
    one = torch.ones(1, 1)
    assert not PRODUCT(q, torch.ones(2, 32, dtype=torch.int8), scale, one, 0, 8, torch.float32).isfinite().any()


def integers(rows: int, k: int, largest: int, seed: int, dtype: torch.dtype = torch.int8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-largest, largest + 1, (rows, k), generator=generator).to(dtype)


SCALES = (torch.tensor([[0.37]]), torch.tensor([[1.9e-3]]))
SHAPES = [(1, 1, 1), (3, 5, 7), (33, 65, 130), (70, 40, 16), (20, 30, 600)]


@pytest.mark.parametrize("accumulator", [4, 8, 12, 32])
@pytest.mark.parametrize("tile", [0, 16, 32, 128])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_product(shape: tuple[int, int, int], tile: int, accumulator: int) -> None:
    m, n, k = shape
    a, b, bias = integers(m, k, 7, 1), integers(n, k, 7, 2), torch.randn(n)
    expected, saturated = saturating_mm.reference(a, b, *SCALES, tile, accumulator, bias)
    saturation.forget()
    out = PRODUCT(a, b, *SCALES, tile, accumulator, torch.float32, bias, "a test")
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(out, saturating_mm.cpu(a, b, *SCALES, tile, accumulator, torch.float32, bias))
    tiles = -(-k // tile) if tile else 1
    assert saturation.counts("a test") == (saturated, m * n * tiles)


@pytest.mark.parametrize("tile", [0, 128])
def test_eight_bits_without_a_sign(tile: int) -> None:
    a, b = torch.full((4, 1500), 255, dtype=torch.int16), torch.full((3, 1500), -127, dtype=torch.int8)
    one = torch.ones(1, 1)
    assert PRODUCT(a, b, one, one, tile, 32, torch.float32).unique().item() == -1500 * 255 * 127
    assert PRODUCT(a, b, one, one, 0, 8, torch.float32).unique().item() == -127


@settings(max_examples=30, deadline=None)
@given(m=st.integers(1, 40), n=st.integers(1, 40), k=st.integers(1, 200), tile=st.sampled_from([0, 16, 32, 64, 128]))
def test_a_wide_accumulator_is_the_plain_product(m: int, n: int, k: int, tile: int) -> None:
    a, b, one = integers(m, k, 127, m), integers(n, k, 127, n), torch.ones(1, 1)
    exact = (a.long() @ b.long().T).float()
    assert torch.equal(PRODUCT(a, b, one, one, tile, 32, torch.float32), exact)
    assert PRODUCT(a, b, one, one, 0, 8, torch.float32).abs().max() <= 127


def test_strides_do_not_matter() -> None:
    a, b = integers(40, 64, 7, 3), integers(24, 64, 7, 4)
    want = PRODUCT(a, b, *SCALES, 32, 8, torch.float32)
    assert torch.equal(PRODUCT(a.t().contiguous().t(), b.t().contiguous().t(), *SCALES, 32, 8, torch.float32), want)


@pytest.mark.parametrize("empty", [(0, 3, 16), (3, 0, 16), (3, 2, 0)], ids=["M=0", "N=0", "K=0"])
@pytest.mark.parametrize("tile", [0, 32])
def test_empty(empty: tuple[int, int, int], tile: int) -> None:
    a, b = integers(empty[0], empty[2], 7, 1), integers(empty[1], empty[2], 7, 2)
    out = PRODUCT(a, b, *SCALES, tile, 8, torch.bfloat16)
    assert out.shape == empty[:2] and not out.any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"b": torch.zeros(5, 16, dtype=torch.int8)}, "contract 32 and 16"),
        ({"b": torch.zeros(5, 32)}, "must be int8 or int16"),
        ({"scale_a": torch.ones(1, 4)}, "one scale per operand"),
    ],
    ids=["K", "dtype", "scales"],
)
def test_misfits_are_refused(change: dict[str, Any], words: str) -> None:
    arguments = {"a": integers(4, 32, 7, 1), "b": integers(5, 32, 7, 2), "scale_a": SCALES[0], "scale_b": SCALES[1]}
    with pytest.raises(KernelError, match=words):
        PRODUCT(**{**arguments, **change}, tile=32, accumulator_bits=8, dtype=torch.float32)


def test_a_seed_is_asked_for() -> None:
    with pytest.raises(ValueError, match="needs a seed"):
        QUANTIZE(torch.ones(2, 2), None, None, 1, 4, 0.975, "stochastic", False)


@pytest.mark.parametrize("order", [0, 8])
def test_opcheck(order: int) -> None:
    torch.library.opcheck(QUANTIZE.default, (torch.randn(6, 24), None, SEED, order, 4, 0.975, "stochastic", False))
    arguments = (integers(6, 48, 7, 1), integers(7, 48, 7, 2), *SCALES, 32, 8, torch.bfloat16, torch.randn(7), "op")
    torch.library.opcheck(PRODUCT.default, arguments)


def test_traffic_is_algebra() -> None:
    assert saturating_mm.traffic(3, 5, 16, 2).operations == 480
    found = quantize_clipped.traffic(3, 16, 16, 4)
    assert (found.read, found.written) == (2 * 3 * 16 * 4, 3 * 16 + 4)


def gaussian(rows: int, k: int, seed: int) -> torch.Tensor:
    x = torch.randn(rows, k, generator=torch.Generator().manual_seed(seed))
    return QUANTIZE(x, None, None, 1, 4, 0.975, "nearest", False)[0]


@pytest.mark.parametrize(
    ("tile", "k", "accumulator", "low", "high"),
    [
        (32, 768, 8, 0, 1e-4),
        (0, 288, 8, 1e-3, 0.012),
        (0, 768, 8, 0.015, 0.07),
        (0, 3072, 8, 0.2, 0.4),
        (0, 3072, 12, 0, 0),
    ],
)
def test_published_shares_of_saturated_sums(tile: int, k: int, accumulator: int, low: float, high: float) -> None:
    """Gaussian 4-bit operands, A = 8: none of the 32-long sums; 0.5, 3.4 and 29 % of those of 288, 768, 3072."""
    exact = saturating_mm.partial_sums(gaussian(256, k, 1), gaussian(256, k, 2), tile)
    share = float((exact.abs() > accumulator_limit(accumulator)).double().mean())
    print(f"{tile or k} products, A = {accumulator}: {100 * share:.3f} %")
    assert low <= share <= high


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="test_interpreter.py runs it")
@pytest.mark.parametrize("tile", [0, 16, 32, 128])
def test_interpreted(tile: int) -> None:
    pytest.importorskip("triton")
    from hadamard_fx.kernels.triton_saturating_mm import launch

    for m, n, k in SHAPES:
        for largest, dtype in ((7, torch.int8), (127, torch.int16)):
            a, b = integers(m, k, largest, 1, dtype), integers(n, k, largest, 2)
            for bias in (None, torch.randn(n).bfloat16()):
                arguments = (a, b, *SCALES, tile, 8, torch.float32, bias)
                name = f"interpreted {m} {n} {k} {tile} {largest} {bias is None}"
                out = launch(*arguments, name)
                assert torch.equal(out, PRODUCT(*arguments, f"native {name}"))
                assert saturation.counts(name) == saturation.counts(f"native {name}")
    transposed = integers(64, 33, 7, 5).t()
    b = integers(9, 64, 7, 2)
    assert torch.equal(
        launch(transposed, b, *SCALES, tile, 8, torch.float32), PRODUCT(transposed, b, *SCALES, tile, 8, torch.float32)
    )


@pytest.mark.parametrize("capability", [80, 90])
def test_compiles_without_a_device(capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles and none, int8 and int16, with a count and a bias and without."""
    pytest.importorskip("triton")
    from hadamard_fx.kernels import ahead

    jobs: list[tuple[Any, ...]] = []

    def submit(kernel: Any, arguments: tuple[Any, ...], options: dict[str, Any], device: torch.device) -> None:
        tensors = tuple(str(a.dtype) for a in arguments if isinstance(a, torch.Tensor))
        job = (kernel.fn.__module__, kernel.fn.__name__, tensors, arguments[len(tensors) :], options)
        jobs.append((*job, ("cuda", capability, 32), str(tmp_path / str(len(jobs)))))

    monkeypatch.setattr(ahead, "submit", submit)
    with FakeTensorMode():
        a, b = (torch.empty(rows, 768, dtype=torch.int8, device="cuda") for rows in (4096, 512))
        wide = torch.empty(4096, 768, dtype=torch.int16, device="cuda")
        scale, bias = torch.empty(1, 1, device="cuda"), torch.empty(512, dtype=torch.bfloat16, device="cuda")
    kernel = library.KERNELS["saturating_mm"]
    settings = [(a, 16, None, ""), (a, 32, bias, "x"), (a, 0, None, "x"), (wide, 32, bias, "")]
    ahead.prepare([(kernel, (x, b, scale, scale, tile, 8, torch.bfloat16, *more)) for x, tile, *more in settings])
    assert len(jobs) == len(settings)
    process = ahead._process()
    assert process is not None
    process.communicate(b"".join(map(pickle.dumps, jobs)), timeout=300)
    assert not [number for number in range(len(jobs)) if not list((tmp_path / str(number)).rglob("*.cubin"))]
