"""quantize_both on the CPU: what quantize_rows and compress_tokens give of the prologue's result, and the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hadamard_fx.kernels import library
from hadamard_fx.kernels.prologue import Prologue, Step
from hadamard_fx.kernels.quantize_both import traffic

KERNELS = library.load()
BOTH, ROWS, TOKENS = (KERNELS[name] for name in ("quantize_both", "quantize_rows", "compress_tokens"))
SEEDS = (0x0123456789ABCDEF, 77)
PRODUCT = Prologue(("tile", "tile", "column"), (Step("mul", ("x0", "x1")), Step("add", ("s0", "x2"))), "s1")

# L, C, rows (order, bits, group), tokens (order, rank, bits, group)
CASES = [
    (70, 90, (16, 4, 32), (16, 8, 8, 32)),
    (70, 90, (16, 8, 0), (16, 16, 8, 0)),
    (33, 20, (4, 4, 16), ()),
    (300, 7, (), (32, 5, 4, 64)),
    (2, 300, (128, 4, 128), (16, 8, 8, 16)),
]
IDS = [f"{length}x{channels}" for length, channels, *_ in CASES]


def arguments(
    case: tuple[Any, ...], dtype: torch.dtype, rounding: str, sums: bool, keep: bool, signs: int | None = None
) -> tuple[Any, ...]:
    length, channels, rows, tokens = case
    generator = torch.Generator().manual_seed(length)
    inputs = [torch.randn(shape, generator=generator).to(dtype) for shape in [(length, channels)] * 2 + [(1, channels)]]
    seeds = SEEDS if rounding == "stochastic" else (None, None)
    settings = (list(rows), rounding, "int8", seeds[0], list(tokens), rounding, seeds[1], sums, keep, signs)
    return (inputs, PRODUCT.to_text(), dtype, *settings)


def on_device(given: tuple[Any, ...]) -> tuple[Any, ...]:
    """With the seeds as tensors."""
    return tuple(torch.tensor(a) if i in (6, 9, 12) and a is not None else a for i, a in enumerate(given))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("signs", [None, 41], ids=["plain", "signs"])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_it_follows_the_reference(case: tuple[Any, ...], signs: int | None, dtype: torch.dtype, rounding: str) -> None:
    given = arguments(case, dtype, rounding, sums=True, keep=True, signs=signs)
    found, expected = BOTH.op(*on_device(given)), BOTH.reference(*given)
    for actual, wanted in zip(found, expected, strict=True):
        assert actual.shape == wanted.shape
        if actual.dtype is torch.int8:
            difference = (actual.double() - wanted).abs()
            assert difference.max() <= 1 if difference.numel() else True
            assert (difference > 0).sum() <= max(1, 1e-4 * difference.numel())
        else:
            torch.testing.assert_close(actual.double(), wanted.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_it_gives_what_the_two_kernels_give(case: tuple[Any, ...]) -> None:
    given = on_device(arguments(case, torch.bfloat16, "stochastic", sums=False, keep=True))
    y, *codes, sums = BOTH.op(*given)
    rows, tokens = case[2:]
    assert torch.equal(y, PRODUCT.evaluate(given[0], torch.bfloat16))
    assert sums.shape == (0, 0)
    expected: list[Tensor] = []
    if rows:
        order, bits, group = rows
        expected += ROWS.op(y, given[6], order, bits, "token", "stochastic", "int8", group)
    if tokens:
        order, rank, bits, group = tokens
        expected += TOKENS.op(y, given[9], order, rank, bits, "channel", "stochastic", group)[:2]
    wanted = [part for part in codes if part.numel()]
    assert all(torch.equal(a, b) for a, b in zip(wanted, expected, strict=True))


@pytest.mark.parametrize(("sums", "keep"), [(False, False), (True, True)])
@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_the_fake_promises_what_comes(case: tuple[Any, ...], sums: bool, keep: bool) -> None:
    given = on_device(arguments(case, torch.bfloat16, "stochastic", sums, keep))
    torch.library.opcheck(BOTH.op, given, test_utils=("test_schema", "test_faketensor"))
    for actual, promised in zip(BOTH.op(*given), BOTH.fake(*given), strict=True):
        assert (actual.shape, actual.dtype) == (promised.shape, promised.dtype)
        assert actual.is_contiguous() and promised.is_contiguous()


def test_sums_add_up() -> None:
    given = on_device(arguments(CASES[0], torch.float32, "nearest", sums=True, keep=True))
    y, *_, sums = BOTH.op(*given)
    assert sums.shape == (3, 90)
    torch.testing.assert_close(sums.sum(0), y.sum(0), rtol=1e-5, atol=1e-5)


def test_one_form_at_least() -> None:
    with pytest.raises(ValueError, match="neither form"):
        BOTH.fake([torch.ones(4, 4)], Prologue.identity().to_text(), torch.float32, [], "nearest", "int8", None, [],
                  "nearest", None, False, False)  # fmt: skip


def test_traffic_is_what_is_read_and_written() -> None:
    given = on_device(arguments(CASES[0], torch.bfloat16, "nearest", sums=False, keep=True))
    results, read = BOTH.op(*given), sum(x.numel() * x.element_size() for x in given[0])
    found = traffic(70, 90, read, PRODUCT.operations, *CASES[0][2:], written=70 * 90 * 2)
    assert found.read == read
    assert found.written == sum(part.numel() * part.element_size() for part in results)


class Allocations(TorchDispatchMode):
    """Elements of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def test_no_memory_for_a_y_that_nobody_wants() -> None:
    """Launchers make their results here: a y beside them would be the largest tensor of a backward."""
    given = arguments(CASES[0], torch.bfloat16, "nearest", sums=True, keep=False)
    form = (*given[:7], [16, 8, 8, 64], *given[8:])
    with Allocations() as seen:
        results = BOTH.fake(*form[:3], [], *form[4:])
    assert seen.largest == max(part.numel() for part in results) < 70 * 90
