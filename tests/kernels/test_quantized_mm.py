"""The quantised product: exact integer sums on every path, scales per group, NaN never hidden."""

from __future__ import annotations

import os
import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from hadamard_fx.errors import KernelError
from hadamard_fx.kernels import integer_mm, library, quantized_mm, quantized_mm_configs

library.load()
OP = torch.ops.hadamard.quantized_mm
FP8 = torch.float8_e4m3fn

# M, N, K, group_k: odd sizes, one row, one column, sizes around a tile and around 16 bytes, ragged groups
SHAPES = [
    (1, 1, 1, 0), (3, 5, 7, 0), (1, 129, 16, 0), (129, 1, 17, 0), (130, 257, 129, 0), (64, 48, 1040, 0),
    (5, 3, 48, 16), (33, 65, 130, 24), (128, 72, 1100, 512), (70, 40, 16, 8),
]  # fmt: skip


def operands(m: int, n: int, k: int, group: int = 0, carrier: Any = torch.int8, device: str = "cpu", limit: int = 0):
    """Random integers up to the carrier's limit, and scales of every magnitude."""
    generator = torch.Generator().manual_seed(m * 7919 + n * 104729 + k)
    limit = limit or (127 if carrier == torch.int8 else 7)
    count = max(-(-k // group), 1) if group else 1
    a, b = (torch.randint(-limit, limit + 1, (r, k), generator=generator).float().to(carrier) for r in (m, n))
    scales = (torch.exp(torch.randn(count, r, generator=generator)) for r in (m, n))
    return [t.to(device) for t in (a, b, *scales)]


def expected(a, b, scale_a, scale_b, group: int) -> torch.Tensor:
    """Exact integer sums, rescaled in float32 in the documented order."""
    step = group or max(a.shape[1], 1)
    out = torch.zeros(a.shape[0], b.shape[0], device=a.device)
    for g in range(scale_a.shape[0]):
        columns = slice(g * step, (g + 1) * step)
        exact = a[:, columns].float().double() @ b[:, columns].float().double().T  # of integers: exact
        out = out + exact.float() * scale_a[g][:, None] * scale_b[g][None, :]
    return out


def agree(out: torch.Tensor, want: torch.Tensor, grouped: bool) -> None:
    """Bit for bit; where groups are added, a device may fuse multiplication and addition: 1e-5 of the largest."""
    if grouped:
        torch.testing.assert_close(out, want, rtol=0.0, atol=1e-5 * want.abs().max().item())
    else:
        assert torch.equal(out, want)


gpu = pytest.mark.gpu
if not torch.cuda.is_available():
    gpu = pytest.mark.skip(reason="needs a CUDA device")


@pytest.mark.parametrize("carrier", [torch.int8, FP8], ids=["int8", "fp8"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s[:3])) + f"g{s[3]}")
def test_cpu_is_exact(shape: tuple[int, int, int, int], carrier: torch.dtype) -> None:
    m, n, k, group = shape
    data = operands(m, n, k, group, carrier)
    agree(OP(*data, group, torch.float32), expected(*data, group), bool(group))
    reference = quantized_mm.reference(*data, group)
    rms = (OP(*data, group, torch.float32).double() - reference).norm() / reference.norm().clamp_min(1e-30)
    assert rms < 1e-6


@pytest.mark.parametrize("side", ["a", "b"])
@pytest.mark.parametrize("shape", [(5, 3, 48, 16), (33, 65, 130, 24), (4, 4, 16, 16)], ids=str)
def test_one_row_of_scales_serves_all_groups(shape: tuple[int, int, int, int], side: str) -> None:
    group = shape[-1]
    a, b, scale_a, scale_b = operands(*shape)
    shared = {"a": (scale_a[:1], scale_b), "b": (scale_a, scale_b[:1])}[side]
    repeated = [scale.expand(scale_a.shape[0], -1) for scale in shared]
    for run in (OP, quantized_mm.cpu):
        out = run(a, b, *shared, group, torch.float32)
        agree(out, expected(a, b, *repeated, group), True)
    reference = quantized_mm.reference(a, b, *shared, group)
    torch.testing.assert_close(reference, quantized_mm.reference(a, b, *repeated, group), rtol=1e-12, atol=0)


def test_scales_for_other_numbers_of_groups_are_refused() -> None:
    a, b, scale_a, scale_b = operands(4, 4, 64, 16)
    with pytest.raises(KernelError, match="scales for 4 and 2 groups"):
        OP(a, b, scale_a, scale_b[:2], 16, torch.float32)


def test_a_shared_row_is_not_stepped_over() -> None:
    a, b, scale_a, scale_b = operands(4, 6, 64, 16)
    assert quantized_mm_configs.problem(a, b, scale_a, scale_b, 16, torch.float32).jumps == (4, 6)
    assert quantized_mm_configs.problem(a, b, scale_a, scale_b[:1], 16, torch.float32).jumps == (4, 0)
    assert quantized_mm_configs.problem(a, b, scale_a[:1, :1], scale_b[:, :1], 16, torch.float32).jumps == (0, 1)


@pytest.mark.parametrize(("group", "specialised"), [(0, True), (128, True), (384, False), (512, True), (640, False)])
def test_groups_that_are_no_whole_units_get_no_specialised_kernel(
    group: int, specialised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It moves sums every 256 columns: of a group of 384 the second half would get the next one's scales."""
    monkeypatch.setattr(quantized_mm_configs, "device", lambda ordinal: (132, 90))
    with FakeTensorMode():
        a, b = (torch.empty(rows, 3840, dtype=torch.int8, device="cuda") for rows in (304, 528))
        count = 3840 // group if group else 1
        scales = [torch.empty(count, rows, device="cuda") for rows in (304, 528)]
        posed = quantized_mm_configs.problem(a, b, *scales, group, torch.bfloat16)
    kernels = {entry["kernel"] for entry in quantized_mm_configs.candidates(posed)}
    assert ("specialised" in kernels) == specialised and kernels


@settings(max_examples=40, deadline=None)
@given(m=st.integers(1, 70), n=st.integers(1, 70), k=st.integers(1, 300), tensor=st.booleans())
def test_any_size(m: int, n: int, k: int, tensor: bool) -> None:
    a, b, scale_a, scale_b = operands(m, n, k)
    if tensor:
        scale_a, scale_b = scale_a[:, :1], scale_b[:, :1]
    out = OP(a, b, scale_a, scale_b, 0, torch.float32)
    assert torch.equal(out, expected(a, b, scale_a.expand(1, m), scale_b.expand(1, n), 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("shape", [(5, 7, 64, 0), (3, 4, 96, 48), (4, 6, 0, 0)], ids=str)
def test_bias_is_added_before_the_result_is_rounded(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    m, n, k, group = shape
    data, bias = operands(m, n, k, group), torch.randn(n).to(dtype)
    want = (expected(*data, group) + bias.float()).to(dtype)
    torch.testing.assert_close(OP(*data, group, dtype, bias), want, rtol=0, atol=1e-6 if dtype == torch.float32 else 0)
    torch.testing.assert_close(quantized_mm.cpu(*data, group, dtype, bias), want, rtol=0, atol=1e-6)
    reference = quantized_mm.reference(*data, group, bias)
    torch.testing.assert_close(OP(*data, group, torch.float32, bias).double(), reference, rtol=1e-5, atol=1e-5)
    torch.library.opcheck(OP, (*data, group, dtype, bias))


@gpu
@pytest.mark.gpu
def test_gpu_bias() -> None:
    for m, n, k, group in [(300, 520, 2064, 0), (768, 384, 25216, 0), (96, 80, 200, 20)]:
        data, bias = operands(m, n, k, group, torch.int8, "cuda"), torch.randn(n, device="cuda").bfloat16()
        want = expected(*data, group) + bias.float()
        for dtype in (torch.float32, torch.bfloat16):
            out = OP(*data, group, dtype, bias)
            torch.testing.assert_close(out.float(), want, rtol=2**-8, atol=2**-8 * want.abs().max().item())


def test_extreme_integers_do_not_saturate() -> None:
    a = torch.full((4, 4096), 127, dtype=torch.int8)
    one = torch.ones(1, 1)
    assert OP(a, a, one, one, 0, torch.float32).unique().item() == 4096 * 127**2
    assert OP(a, -a, one, one, 0, torch.float32).unique().item() == -4096 * 127**2


def test_longer_than_an_int32_holds() -> None:
    k = 2 * integer_mm.EXACT_COLUMNS + 16
    a = torch.full((2, k), 127, dtype=torch.int8)
    one = torch.ones(1, 1)
    assert OP(a, a, one, one, 0, torch.float32)[0, 0].item() == pytest.approx(k * 127**2, rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("empty", [(0, 3, 16), (3, 0, 16), (3, 2, 0)], ids=["M=0", "N=0", "K=0"])
def test_empty(empty: tuple[int, int, int], dtype: torch.dtype) -> None:
    out = OP(*operands(*empty), 0, dtype)
    assert out.shape == empty[:2] and out.dtype == dtype and not out.any()


def test_strides_do_not_matter() -> None:
    a, b, *scales = operands(40, 24, 64)
    want = OP(a, b, *scales, 0, torch.float32)
    assert torch.equal(OP(a.t().contiguous().t(), b.t().contiguous().t(), *scales, 0, torch.float32), want)


@pytest.mark.parametrize(("m", "n"), [(1, 24), (40, 1), (1, 1)])
def test_axes_of_size_one_may_have_any_stride(m: int, n: int) -> None:
    a, b, *scales = operands(m, n, 64)
    want = expected(a, b, *scales, 0)
    a, b = (t.as_strided(t.shape, (0, 1)) if t.shape[0] == 1 else t for t in (a, b))
    assert torch.equal(OP(a, b, *scales, 0, torch.float32), want)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_scale_reaches_its_row(value: float) -> None:
    a, b, scale_a, scale_b = operands(4, 5, 32)
    scale_a[0, 2] = value
    a[2] = 0
    out = OP(a, b, scale_a, scale_b, 0, torch.bfloat16)
    assert not out[2].isfinite().any() and out[[0, 1, 3]].isfinite().all()


def test_fallback_without_an_exact_int8_product(monkeypatch: pytest.MonkeyPatch) -> None:
    data = operands(9, 11, 2500, limit=127)
    want = OP(*data, 0, torch.float32)
    monkeypatch.setattr(integer_mm, "int8_product_is_exact", lambda: False)
    assert torch.equal(OP(*data, 0, torch.float32), want)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"b": torch.zeros(5, 16, dtype=torch.int8)}, "contract 32 and 16"),
        ({"b": torch.zeros(5, 32).to(FP8)}, "both operands must be int8"),
        ({"scale_a": torch.ones(1, 3)}, "scales must be"),
        ({"scale_a": torch.ones(2, 4), "scale_b": torch.ones(2, 5)}, "do not fit groups"),
        ({"group_k": 16}, "do not cover"),
    ],
    ids=["K", "carrier", "scales", "groups", "cover"],
)
def test_misfits_are_refused(change: dict[str, Any], words: str) -> None:
    a, b, scale_a, scale_b = operands(4, 5, 32)
    arguments = {"a": a, "b": b, "scale_a": scale_a, "scale_b": scale_b, "group_k": 0, "dtype": torch.float32}
    with pytest.raises(KernelError, match=words):
        OP(**{**arguments, **change})


@pytest.mark.parametrize("shape", [(6, 7, 48, 0), (6, 7, 48, 16)], ids=["whole", "groups"])
def test_opcheck(shape: tuple[int, int, int, int]) -> None:
    torch.library.opcheck(OP.default, (*operands(*shape), shape[3], torch.bfloat16))


def test_traces_with_symbolic_sizes() -> None:
    data = operands(12, 24, 48)
    graph = make_fx(lambda *t: quantized_mm.cpu(*t, 0, torch.bfloat16), tracing_mode="symbolic")(*data)
    assert any(node.target is torch.ops.aten._int_mm.default for node in graph.graph.nodes)
    other = operands(30, 16, 64)
    assert torch.equal(graph(*other), OP(*other, 0, torch.bfloat16))


def test_traffic_is_algebra() -> None:
    traffic = quantized_mm.traffic(3, 5, 16, "int8", 2)
    assert (traffic.read, traffic.written, traffic.operations) == ((3 + 5) * 16 + 8 * 4, 30, 480)
    assert traffic.unit == "int8" and quantized_mm.traffic(3, 5, 16, "float8_e4m3", 2).unit == "float8"


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="test_interpreter.py runs it")
@pytest.mark.parametrize("processors", [1, 2, 3, 7, 30])
@pytest.mark.parametrize("kernel", ["tiles", "stream"])
def test_interpreted(kernel: str, processors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from hadamard_fx.kernels import quantized_mm_configs as configs
    from hadamard_fx.kernels import quantized_mm_cuda as cuda

    for module in (cuda, configs):
        monkeypatch.setattr(module, "device", lambda index: (processors, 80))
    tile = configs.config(kernel, 32, 32, 32, 2, store="plain", tma=False)
    for m, n, k, group in [(3, 5, 7, 0), (40, 33, 700, 0), (33, 40, 300, 48), (20, 30, 300, 64)]:
        for carrier in (torch.int8, FP8):
            data = operands(m, n, k, group, carrier)
            out = torch.full((m, n), float("nan"))
            cuda.Product(tile, configs.problem(*data, group, torch.float32))(*data, out, data[3])
            agree(out, expected(*data, group), bool(group))
            shared = [*data[:3], data[3][:1]]
            cuda.Product(tile, configs.problem(*shared, group, torch.float32))(*shared, out, data[3])
            agree(out, expected(*data[:3], data[3][:1].expand(data[2].shape[0], -1), group), bool(group))
            bias = torch.randn(n, dtype=torch.float16)
            cuda.Product(tile, configs.problem(*data, group, torch.float32, bias))(*data, out, bias)
            agree(out, expected(*data, group) + bias.float(), True)


ODD = [
    *SHAPES, (300, 520, 2064, 0), (768, 384, 25216, 0), (2048, 2056, 1000, 0), (384, 256, 8200, 512), (96, 80, 200, 20),
    (768, 3072, 3200, 0), (2048, 1300, 4096, 256), (304, 528, 2064, 128), (320, 136, 4096, 256), (768, 776, 6416, 128),
    (6160, 384, 768, 128), (304, 528, 3840, 384), (304, 528, 3840, 640), (304, 528, 3840, 512),
]  # fmt: skip


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("carrier", [torch.int8, FP8], ids=["int8", "fp8"])
@pytest.mark.parametrize("shape", ODD, ids=lambda s: "x".join(map(str, s[:3])) + f"g{s[3]}")
def test_gpu_every_configuration(shape: tuple[int, int, int, int], carrier: torch.dtype, dtype: torch.dtype) -> None:
    m, n, k, group = shape
    data = operands(m, n, k, group, carrier, "cuda")
    every_configuration(data, group, dtype, expected(*data, group))
    if group:
        a, b, scale_a, scale_b = data
        want = expected(a, b, scale_a, scale_b[:1].expand_as(scale_b), group)
        every_configuration((a, b, scale_a, scale_b[:1].contiguous()), group, dtype, want)


def every_configuration(data: Any, group: int, dtype: torch.dtype, want: torch.Tensor) -> None:
    from hadamard_fx.kernels import quantized_mm_configs as configs
    from hadamard_fx.kernels import quantized_mm_cuda as cuda

    posed = configs.problem(*data, group, dtype)
    (m, n), tiles = want.shape, configs.candidates(posed)
    assert tiles
    for tile in tiles:
        out = torch.full((m, n), float("nan"), dtype=dtype, device="cuda")
        cuda.Product(tile, posed)(*data, out, data[3])
        if group:
            torch.testing.assert_close(out.float(), want, rtol=0.0, atol=2**-7 * want.abs().max().item())
        else:
            assert torch.equal(out, want.to(dtype)), tile


@gpu
@pytest.mark.gpu
def test_gpu_float8_sums_stay_exact() -> None:
    a = torch.full((256, 50432 // 2), 7.0, device="cuda")
    a[:, ::3] = 6.0
    one = torch.ones(1, 1, device="cuda")
    out = OP(a.to(FP8), a.to(FP8), one, one, 0, torch.float32)
    assert torch.equal(out, (a.double() @ a.double().T).float())


@gpu
@pytest.mark.gpu
def test_gpu_threads_streams_graphs_and_views() -> None:
    data = operands(256, 512, 4096, device="cuda")
    want = OP(*data, 0, torch.bfloat16)
    other: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: other.append(OP(*data, 0, torch.bfloat16)))
    thread.start()
    thread.join()
    assert torch.equal(other[0], want)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = OP(*data, 0, torch.bfloat16)
    graph.replay()
    assert torch.equal(replayed, want)
    a, b, *scales = data
    padded = torch.zeros(256, 4097, dtype=torch.int8, device="cuda")
    padded[:, 1:] = a
    assert torch.equal(OP(padded[:, 1:], b, *scales, 0, torch.bfloat16), want)
    assert torch.equal(OP(a.t().contiguous().t(), b, *scales, 0, torch.bfloat16), want)
    row = OP(a[:1].as_strided((1, 4096), (0, 1)), b, scales[0][:, :1], scales[1], 0, torch.bfloat16)
    assert torch.equal(row, want[:1])
