"""Exact products of small integers on a CPU: by the machine's int8 product where that is exact, else by float32.

Not every CPU's is: without VNNI or AMX pairs of products are added in a saturating int16.
"""

from __future__ import annotations

import functools
import threading

import torch

__all__ = ["EXACT_COLUMNS", "int8_product_is_exact", "integer_mm"]

EXACT_COLUMNS = 131_072
"""Columns whose products of two int8 always sum up within an int32: 2^17 · 127² < 2^31."""

_FLOAT32_COLUMNS = 1024
"""Columns whose products of two int8 sum up exactly in float32: 2^10 · 128² = 2^24."""


def integer_mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a bᵀ of integers, exact: int32 [M, N]. |a|, |b| ≤ 128 and at most ``EXACT_COLUMNS`` columns."""
    if a.dtype != torch.int8:
        a, b = a.to(torch.float32).to(torch.int8), b.to(torch.float32).to(torch.int8)
    if int8_product_is_exact() and not _degenerate(a, b):
        return torch._int_mm(a, b.t())
    if not isinstance(a.shape[1], int):
        return (a.to(torch.float64) @ b.to(torch.float64).t()).to(torch.int32)
    total = None
    for start in range(0, max(a.shape[1], 1), _FLOAT32_COLUMNS):
        columns = slice(start, start + _FLOAT32_COLUMNS)
        partial = (a[:, columns].to(torch.float32) @ b[:, columns].to(torch.float32).t()).to(torch.int32)
        total = partial if total is None else total + partial
    assert total is not None
    return total


def _degenerate(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Operands that ``_int_mm`` may leave unmultiplied without a word: it takes the strides for leading dimensions, and
    the stride of an axis of size 1 may be anything (pytorch issue 195066). Symbolic sizes are never 1."""
    return any(isinstance(x, int) and x == 1 for x in (*a.shape, *b.shape)) or any(
        isinstance(x, int) and x == 0 for x in (*a.stride(), *b.stride())
    )


@functools.cache
def int8_product_is_exact() -> bool:
    """Whether this CPU's ``torch._int_mm`` is exact. Without VNNI or AMX it adds pairs in a saturating int16."""
    result: list[bool] = []
    # A thread of its own: the question may come up while a graph is traced, and tracing modes are per thread.
    probe = threading.Thread(target=lambda: result.append(_probe_int8_product()))
    probe.start()
    probe.join()
    return bool(result and result[0])


def _probe_int8_product() -> bool:
    with torch.inference_mode():
        for left, right in ((127, 127), (-128, 127), (127, -128), (-127, -127)):
            a = torch.full((32, 256), left, dtype=torch.int8)
            b = torch.full((32, 256), right, dtype=torch.int8)
            for operand in (b.t(), b.t().contiguous()):
                if not bool((torch._int_mm(a, operand) == 256 * left * right).all()):
                    return False
    return True
