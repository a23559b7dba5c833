"""The compiled CPU kernels against the readable ``cpu`` forms, bit for bit where both add in the same order."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hadamard_fx.errors import KernelError
from hadamard_fx.kernels import cpp_build, library

KERNELS = library.load()
ROUNDINGS = ("nearest", "stochastic", "pseudo_stochastic")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SEED = torch.tensor(-(2**40) + 12345)


def _seed(rounding: str) -> torch.Tensor | None:
    return SEED if rounding == "stochastic" else None


def _input(rows: int, columns: int, layout: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """A Gaussian matrix whose rows, columns, or neither are contiguous."""
    generator = torch.Generator().manual_seed(seed)
    shape = {"rows": (rows, columns), "columns": (columns, rows), "sliced": (rows, columns + 5)}.get(layout)
    data = torch.randn(shape or (rows * 2, columns * 3), generator=generator).to(dtype)
    if layout == "columns":
        return data.t()
    return data[:, 2:-3] if layout == "sliced" else data[::2, ::3] if layout == "scattered" else data


def _compare(name: str, *arguments: object, exact: bool = True) -> None:
    """Integers and scales of the operator and of the readable form."""
    kernel = KERNELS[name]
    q, scales, *sums = kernel.op(*arguments)
    expected_q, expected_scales, *expected_sums = kernel.cpu(*arguments)
    fake_q, fake_scales, *fake_sums = kernel.fake(*arguments)
    assert [s.shape for s in sums] == [s.shape for s in fake_sums]
    torch.testing.assert_close(sums, expected_sums, rtol=1e-5, atol=1e-4)
    assert q.shape == fake_q.shape == expected_q.shape and q.dtype == fake_q.dtype == expected_q.dtype
    assert q.stride() == fake_q.stride() and scales.stride() == fake_scales.stride()
    # A sum that cancels is as inexact as its terms are, which the largest scale stands for.
    torch.testing.assert_close(scales, expected_scales, rtol=1e-6, atol=1e-6 * float(expected_scales.max()))
    difference = (q.float() - expected_q.float()).abs()
    assert difference.nan_to_num().max() <= 1
    if exact:
        assert (difference > 0).sum() <= 1e-4 * q.numel() + 1, f"{int((difference > 0).sum())} of {q.numel()} differ"


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("order", [2, 4, 8, 16, 32, 64, 128])
def test_rows_of_every_order(order: int, rounding: str) -> None:
    for layout, scale in itertools.product(("rows", "columns", "sliced", "scattered"), ("token", "tensor")):
        x = _input(33, 277, layout)
        exact = rounding != "pseudo_stochastic"  # whose draw follows the last bit of a sum
        _compare("quantize_rows", x, _seed(rounding), order, 8, scale, rounding, "int8", exact=exact)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("order", [2, 4, 8, 16, 32, 64, 128])
def test_tokens_of_every_order(order: int, rounding: str) -> None:
    exact = rounding != "pseudo_stochastic"
    for layout, scale, group in itertools.product(("rows", "columns", "sliced"), ("channel", "tensor"), (0, 1, 2)):
        x = _input(277, 71, layout)
        for rank in {1, max(order * 5 // 16, 1), order // 2, order}:
            arguments = (x, _seed(rounding), order, rank, 8, scale, rounding, group * order, not group)
            _compare("compress_tokens", *arguments, exact=exact)
            _compare("compress_tokens", *arguments, SEED + 1, exact=exact)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 300),
    st.sampled_from(DTYPES),
    st.sampled_from(("rows", "columns", "sliced", "scattered")),
    st.integers(2, 8),
    st.sampled_from((2, 4, 8, 16, 32)),
    st.integers(0, 1000),
)
def test_any_shape(rows: int, columns: int, dtype: torch.dtype, layout: str, bits: int, order: int, seed: int) -> None:
    x = _input(rows, columns, layout, dtype, seed)
    _compare("quantize_rows", x, torch.tensor(seed), order, bits, "token", "stochastic", "int8")
    _compare("quantize_weight", x, order, bits, "token", "int8")
    _compare("quantize_weight", x, order, bits, "tensor", "int8")
    rank = 1 + seed % order
    group = order * (seed % 3)
    _compare("compress_tokens", x, None, order, rank, bits, "channel", "nearest", group, not group)
    _compare("compress_tokens", x, None, order, rank, bits, "tensor", "nearest", group, not group, torch.tensor(seed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_conversions_are_exact(dtype: torch.dtype, layout: str) -> None:
    """Every finite bit pattern of 16 bits, subnormal ones too: one per row, which its scale shows."""
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    values = patterns.view(dtype) if dtype.itemsize == 2 else patterns.float()
    x = torch.zeros(65536, 2, dtype=dtype)
    x[:, 0] = values
    x = x if layout == "rows" else x.t().contiguous().t()
    _, scales = KERNELS["quantize_rows"].op(x, None, 2, 8, "token", "nearest", "int8")
    _, expected = KERNELS["quantize_rows"].cpu(x, None, 2, 8, "token", "nearest", "int8")
    assert torch.equal(scales.isnan(), expected.isnan())
    assert torch.equal(scales.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf])
def test_not_finite(special: float, layout: str) -> None:
    """A NaN or inf reaches the scale of its extent and no other."""
    x = _input(20, 50, layout).clone(memory_format=torch.preserve_format)
    x[3, 7], x[5] = special, 0
    _, scales = KERNELS["quantize_rows"].op(x, None, 16, 8, "token", "nearest", "int8")
    assert not scales[0, 3].isfinite() and scales.isfinite().sum() == 19
    q, scales = KERNELS["quantize_rows"].op(x, None, 16, 4, "token", "nearest", "float8_e4m3")
    assert (q.float()[3] * scales[0, 3])[:16].isnan().all() and not q.float()[5].any()
    _, scales, _ = KERNELS["compress_tokens"].op(x, None, 4, 2, 8, "channel", "nearest", 4)
    assert (~scales.isfinite()).nonzero().tolist() == [[0, 7]]
    _, scales, _ = KERNELS["compress_tokens"].op(x, None, 4, 2, 8, "tensor", "nearest", 4)
    assert (~scales.isfinite()).nonzero().tolist() == [[0, 0]]


def test_float8_holds_the_same_integers() -> None:
    x = _input(40, 100, "rows")
    for layout in (x, x.t().contiguous().t()):
        narrow = KERNELS["quantize_rows"].op(layout, SEED, 16, 4, "token", "stochastic", "float8_e4m3")[0]
        assert torch.equal(
            narrow.float(), KERNELS["quantize_rows"].op(x, SEED, 16, 4, "token", "stochastic", "int8")[0].float()
        )


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_empty(shape: tuple[int, int]) -> None:
    for name, rest in (
        ("quantize_rows", (None, 16, 8, "token", "nearest", "int8")),
        ("quantize_weight", (16, 8, "tensor", "int8")),
        ("compress_tokens", (None, 16, 8, 8, "channel", "nearest", 32)),
    ):
        x = torch.zeros(shape)
        results, expected = KERNELS[name].op(x, *rest), KERNELS[name].fake(x, *rest)
        assert all(r.shape == e.shape and not r.float().any() for r, e in zip(results, expected, strict=True))


def test_threads_do_not_matter() -> None:
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            x = _input(300, 530, "rows")
            results.append(
                [
                    *KERNELS["quantize_rows"].op(x, SEED, 16, 8, "tensor", "stochastic", "int8"),
                    *KERNELS["compress_tokens"].op(x, SEED, 16, 8, 8, "channel", "stochastic", 0),
                    *KERNELS["compress_tokens"].op(x, SEED, 16, 8, 8, "tensor", "stochastic", 32),
                ]
            )
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(results[0], others, strict=True))


@pytest.mark.parametrize("group_k", [0, 32])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_row", [True, False])
def test_product_is_the_readable_one(group_k: int, dtype: torch.dtype, per_row: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    for m, n, k in ((1, 1, 32), (33, 70, 96), (128, 17, 64)):
        a, b = (torch.randint(-127, 128, (rows, k), generator=generator).to(torch.int8) for rows in (m, n))
        count = k // group_k if group_k else 1
        scale_a = torch.rand(count, m if per_row else 1, generator=generator)
        scale_b = torch.rand(count, n if per_row else 1, generator=generator)
        scale_a[0, -1] = torch.nan
        arguments = (a, b, scale_a, scale_b, group_k, dtype)
        result, expected = KERNELS["quantized_mm"].op(*arguments), KERNELS["quantized_mm"].cpu(*arguments)
        assert torch.equal(result.isnan(), expected.isnan())
        assert torch.equal(result.nan_to_num(), expected.nan_to_num())


def test_no_compiler_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(source: str) -> None:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(cpp_build.compat, "load_cpp", fails)
    cpp_build.library.cache_clear()
    try:
        with pytest.raises(KernelError, match=r"'quantize_rows' failed for rows=2 k=2 (?s:.)*install g\+\+"):
            KERNELS["quantize_rows"].op(torch.ones(2, 2), None, 2, 8, "token", "nearest", "int8")
    finally:
        cpp_build.library.cache_clear()
