"""quantize_rows, quantize_weight, compress_tokens on the CPU: against float64, as operators, traced, on bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from hadamard_fx.errors import SchemeError
from hadamard_fx.kernels import library
from hadamard_fx.kernels.walsh import walsh_reference

KERNELS = library.load()
ROWS, TOKENS, WEIGHT = (KERNELS[name] for name in ("quantize_rows", "compress_tokens", "quantize_weight"))
SEED = 0x0123456789ABCDEF

# rows, columns, order
ROW_SHAPES = [(1, 1, 2), (5, 37, 16), (3, 130, 128), (7, 64, 4), (64, 200, 16)]
# tokens, channels, order, rank, group
TOKEN_SHAPES = [
    (600, 70, 16, 8, 0),
    (1, 1, 2, 1, 0),
    (37, 5, 16, 8, 0),
    (37, 5, 16, 8, 16),
    (200, 3, 16, 10, 48),
    (130, 4, 128, 96, 0),
]


def agree(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Integers equal up to one step in 1e-4 of the elements (a value on the edge of two), scales to 1e-6."""
    q, scale = actual[:2]
    assert q.shape == expected[0].shape
    difference = (q.double() - expected[0]).abs()
    assert difference.max() <= 1
    assert (difference > 0).sum() <= max(1, 1e-4 * q.numel())
    torch.testing.assert_close(scale.double(), expected[1], rtol=1e-6, atol=0)


def row_settings(rounding: str, scale: str = "token", carrier: str = "int8", bits: int = 4) -> tuple[Any, ...]:
    return bits, scale, rounding, carrier


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("scale", ["token", "tensor"])
@pytest.mark.parametrize("shape", ROW_SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_rows_follow_the_reference(shape: tuple[int, int, int], scale: str, dtype: torch.dtype) -> None:
    rows, columns, order = shape
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns)).to(dtype)
    for rounding, carrier, bits in (
        ("nearest", "int8", 8),
        ("stochastic", "int8", 4),
        ("stochastic", "float8_e4m3", 4),
    ):
        seed = SEED if rounding == "stochastic" else None
        tensor_seed = None if seed is None else torch.tensor(seed)
        actual = ROWS.op(x, tensor_seed, order, bits, scale, rounding, carrier)
        agree((actual[0].float(), actual[1]), ROWS.reference(x, seed, order, bits, scale, rounding, carrier))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "pseudo_stochastic"])
@pytest.mark.parametrize("shape", [(5, 37, 16, 16), (3, 300, 128, 128), (64, 200, 16, 64), (1, 1, 2, 16)], ids=str)
def test_groups_of_columns_share_a_scale(shape: tuple[int, ...], rounding: str) -> None:
    rows, columns, order, group = shape
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns)) * torch.arange(1, columns + 1)
    arguments = (order, 8, "token", rounding, "int8", group)
    q, scale = ROWS.op(x, torch.tensor(SEED), *arguments)
    assert scale.shape == (-(-columns // group), rows)
    agree((q, scale), tuple(part.double() for part in ROWS.cpu(x, torch.tensor(SEED), *arguments)))
    if rounding != "pseudo_stochastic":
        agree((q, scale), ROWS.reference(x, SEED, *arguments))
    for g in range(scale.shape[0]):  # each group is a tensor of its own
        piece = x[:, g * group : (g + 1) * group]
        torch.testing.assert_close(scale[g], ROWS.op(piece, None, order, 8, "token", "nearest", "int8")[1][0])


def test_groups_must_be_whole_blocks_with_scales_per_token() -> None:
    for order, scale, group in ((32, "token", 16), (16, "tensor", 32), (16, "token", -16)):
        with pytest.raises(ValueError, match="group must be 0"):
            ROWS.fake(torch.ones(4, 64), None, order, 8, scale, "nearest", "int8", group)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("scale", ["channel", "tensor"])
@pytest.mark.parametrize("shape", TOKEN_SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_tokens_follow_the_reference(shape: tuple[int, ...], scale: str, dtype: torch.dtype) -> None:
    tokens, channels, order, rank, group = shape
    x = torch.randn(tokens, channels, generator=torch.Generator().manual_seed(tokens)).to(dtype)
    for rounding, signs in (("nearest", None), ("stochastic", None), ("nearest", 5), ("stochastic", -(2**40))):
        seed = SEED if rounding == "stochastic" else None
        seeds = [None if word is None else torch.tensor(word) for word in (seed, signs)]
        arguments = (order, rank, 8, scale, rounding, group, not group)
        actual, expected = TOKENS.op(x, seeds[0], *arguments, seeds[1]), TOKENS.reference(x, seed, *arguments, signs)
        agree(actual, expected)
        torch.testing.assert_close(actual[2].double(), expected[2], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(actual[2].sum(0), x.float().sum(0) * (not group), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("scale", ["token", "tensor"])
def test_weight_is_transposed(scale: str) -> None:
    w = torch.randn(45, 7, generator=torch.Generator().manual_seed(1))
    agree(WEIGHT.op(w, 16, 4, scale, "int8"), WEIGHT.reference(w, 16, 4, scale, "int8"))
    by_rows = ROWS.op(w.t(), None, 16, 4, scale, "nearest", "int8")
    agree(WEIGHT.op(w, 16, 4, scale, "int8"), (by_rows[0].double(), by_rows[1].double()))


def test_dequantised_values_are_the_orthonormal_transform() -> None:
    x = torch.randn(9, 64)
    q, scale = ROWS.op(x, None, 16, 8, "token", "nearest", "int8")
    expected = x @ torch.block_diag(*[walsh_reference(16).float()] * 4) / 4
    assert ((q * scale.t() - expected).abs() <= scale.t() * 0.5001).all()


def grid(*shape: int) -> Tensor:
    """Values whose sums are exact in any order."""
    return torch.randint(-64, 65, shape) / 16


def operator_calls() -> list[Any]:
    x, seed = grid(37, 21), torch.tensor(7)
    calls = [
        (ROWS, (x, seed, 16, 4, "token", "stochastic", "int8")),
        (ROWS, (x.t(), None, 8, 8, "tensor", "pseudo_stochastic", "float8_e4m3")),
        (TOKENS, (x, seed, 16, 8, 8, "channel", "stochastic", 0, True)),
        (TOKENS, (x.t(), None, 4, 3, 8, "tensor", "nearest", 8)),
        (TOKENS, (x, None, 16, 8, 8, "channel", "nearest", 0, True, seed)),
        (WEIGHT, (x, 16, 4, "token", "float8_e4m3")),
    ]
    return [pytest.param(*call, id=f"{call[0].name}{index}") for index, call in enumerate(calls)]


@pytest.mark.parametrize(("kernel", "arguments"), operator_calls())
def test_operator_is_well_formed(kernel: library.Kernel, arguments: tuple[Any, ...]) -> None:
    torch.library.opcheck(kernel.op, arguments)


@pytest.mark.parametrize(("kernel", "arguments"), operator_calls())
def test_cpu_form_traces_with_symbolic_sizes(kernel: library.Kernel, arguments: tuple[Any, ...]) -> None:
    """One graph serves other sizes, holds no constant tensor, and gives the operator's bits."""
    where = [index for index, given in enumerate(arguments) if isinstance(given, Tensor)]
    tensors = [arguments[index] for index in where]

    def call(*inputs: Tensor) -> Any:
        given = dict(zip(where, inputs, strict=True))
        return kernel.cpu(*(given.get(index, argument) for index, argument in enumerate(arguments)))

    graph = make_fx(call, tracing_mode="symbolic")(*tensors)
    assert not [node for node in graph.graph.nodes if node.op == "get_attr"]
    for x in (tensors[0], grid(71, 33)):
        for actual, expected in zip(graph(x, *tensors[1:]), kernel.op(x, *arguments[1:]), strict=True):
            assert actual.shape == expected.shape
            assert torch.equal(actual.float(), expected.float())


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_poison_reaches_its_own_scale_and_no_other(poison: float) -> None:
    x = torch.randn(70, 40)
    x[5, 33] = poison
    _, rows = ROWS.op(x, None, 16, 4, "token", "nearest", "int8")
    assert [r for r in range(70) if not rows[0, r].isfinite()] == [5]
    _, channels, _ = TOKENS.op(x, None, 16, 8, 8, "channel", "nearest", 0)
    assert [c for c in range(40) if not channels[0, c].isfinite()] == [33]
    _, groups, _ = TOKENS.op(x, None, 16, 8, 8, "channel", "nearest", 32)
    assert groups.isfinite().logical_not().nonzero().tolist() == [[0, 33]]
    for op, arguments in (
        (ROWS.op, (16, 4, "tensor", "nearest", "int8")),
        (TOKENS.op, (16, 8, 8, "tensor", "nearest", 0)),
    ):
        assert not op(x, None, *arguments)[1].isfinite().any()
    assert (~WEIGHT.op(x, 16, 4, "token", "int8")[1].isfinite()).nonzero().tolist() == [[0, 33]]


def test_zeros_stay_zero_and_nothing_is_empty() -> None:
    seed = torch.tensor(3)
    for rounding in ("nearest", "stochastic", "pseudo_stochastic"):
        q, scale = ROWS.op(torch.zeros(5, 33), seed, 16, 4, "token", rounding, "int8")
        assert not q.any() and scale.isfinite().all()
        q, scale, _ = TOKENS.op(torch.zeros(33, 5), seed, 16, 8, 8, "channel", rounding, 0)
        assert not q.any() and scale.isfinite().all()
    for shape in ((0, 16), (16, 0), (0, 0)):
        for kernel, arguments in (
            (ROWS, (16, 4, "token", "nearest", "int8")),
            (TOKENS, (16, 8, 8, "tensor", "nearest", 32)),
        ):
            results, shapes = (
                kernel.op(torch.zeros(shape), None, *arguments),
                kernel.fake(torch.zeros(shape), None, *arguments),
            )
            assert [r.shape for r in results] == [s.shape for s in shapes]
            assert not any(r.any() for r in results)
        assert not WEIGHT.op(torch.zeros(shape), 16, 4, "token", "int8")[0].any()


def test_padding_columns_are_zero() -> None:
    q, _, _ = TOKENS.op(torch.randn(17, 3), torch.tensor(1), 16, 10, 8, "channel", "stochastic", 0)
    assert q.shape == (3, 32) and not q[:, 20:].any() and q[:, :20].any()


def test_same_seed_same_integers() -> None:
    x = torch.randn(40, 64)
    first, again, other = (
        ROWS.op(x, torch.tensor(s), 16, 4, "token", "stochastic", "int8")[0] for s in (SEED, SEED, SEED + 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_unknown_carrier_is_named() -> None:
    with pytest.raises(SchemeError, match="int16"):
        ROWS.op(torch.zeros(2, 2), None, 2, 4, "token", "nearest", "int16")


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 40), st.sampled_from([2, 4, 16, 64]), st.integers(1, 64), st.integers(0, 3))
def test_products_of_any_size(tokens: int, channels: int, order: int, rank: int, groups: int) -> None:
    """Shapes follow the contract, and full rank at 8 bits gives the product back."""
    rank = min(rank, order)
    x = torch.randn(tokens, channels, generator=torch.Generator().manual_seed(tokens * 41 + channels))
    q, scale, _ = TOKENS.op(x, None, order, rank, 8, "channel", "nearest", groups * order)
    fake_q, fake_scale, _ = TOKENS.fake(x, None, order, rank, 8, "channel", "nearest", groups * order)
    assert (q.shape, scale.shape) == (fake_q.shape, fake_scale.shape)
    if rank == order and not groups:
        dequantised = q.float() * scale.t()
        error = (dequantised @ dequantised.t() - x.t() @ x).norm() / (x.t() @ x).norm()
        assert error < 0.03


def test_traffic_is_algebra() -> None:
    sympy = pytest.importorskip("sympy")
    size = sympy.Symbol("s", positive=True, integer=True)
    for symbolic, number in (
        (ROWS.traffic(size, 3072, 16, 2), ROWS.traffic(197, 3072, 16, 2)),
        (TOKENS.traffic(size, 768, 16, 8, 2, 1024), TOKENS.traffic(197, 768, 16, 8, 2, 1024)),
        (WEIGHT.traffic(size, 768, 16, 2), WEIGHT.traffic(197, 768, 16, 2)),
    ):
        for part in ("read", "written", "operations", "bytes"):
            assert getattr(symbolic, part).subs(size, 197) == getattr(number, part)
    assert ROWS.traffic(100, 64, 16, 2).bytes == 100 * 64 * 3 + 400
