"""Launchers of the CPU kernels: the operators on CPU tensors, with the arguments and results of their ``cpu`` forms."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from hadamard_fx.errors import KernelError

from . import cpp_build
from .library import failure
from .rounding import require_seed
from .scaling import carrier_dtype, padded_kept, qmax, scale_factor, summed_tokens
from .signs import normaliser

__all__ = ["compress_tokens", "quantize_rows", "quantize_weight", "rescale"]

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_ROUNDINGS = {"nearest": 0, "stochastic": 1, "pseudo_stochastic": 2}
_ELEMENTS_PER_THREAD = 16_384
"""Below this a thread costs more than it brings."""


def quantize_rows(
    x: Tensor, seed: Tensor | None, order: int, bits: int, scale: str, rounding: str, carrier: str, group: int = 0
) -> tuple[Tensor, Tensor]:
    """``torch.ops.hadamard.quantize_rows`` on CPU tensors: x [R, K] to q [R, Kp], scales [G, R] or [1, 1]."""
    return _transform("quantize_rows", x, seed, order, order, bits, scale == "token", rounding, group, carrier)[:2]


def quantize_weight(w: Tensor, order: int, bits: int, scale: str, carrier: str) -> tuple[Tensor, Tensor]:
    """``torch.ops.hadamard.quantize_weight`` on CPU tensors: w [K, N] to q [N, Kp], scales [1, N] or [1, 1]."""
    return _transform("quantize_weight", w.t(), None, order, order, bits, scale == "token", "nearest", 0, carrier)[:2]


def compress_tokens(
    x: Tensor,
    seed: Tensor | None,
    order: int,
    rank: int,
    bits: int,
    scale: str,
    rounding: str,
    group: int,
    sums: bool = False,
    signs: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``torch.ops.hadamard.compress_tokens`` on CPU tensors: x [L, C] to q [C, Lp], scales [G, C] or [G, 1], sums."""
    per_row = scale == "channel"
    return _transform("compress_tokens", x.t(), seed, order, rank, bits, per_row, rounding, group, "int8", sums, signs)


def rescale(
    partial: Tensor, scale_a: Tensor, scale_b: Tensor, out: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> Tensor:
    """int32 [M, N] times scale_a along the rows, then scale_b along the columns, in one pass.

    A contiguous ``partial`` lends its memory to a float32 result: a large allocation costs more than the pass itself.

    Args:
        partial: int32 [M, N], its columns contiguous; not to be used afterwards.
        scale_a, scale_b: float32 [M] or [1], and [N] or [1].
        out: contiguous float32 [M, N] to add to; the result is new where it is None.
        dtype: of a new result, float32 or bfloat16.
    """
    m, n = partial.shape
    columns = scale_b.expand(n).contiguous()
    rows = scale_a.expand(m)
    result = out
    if result is None:
        in_place = dtype == torch.float32 and partial.is_contiguous()
        result = partial.view(torch.float32) if in_place else torch.empty(m, n, dtype=dtype)
    cpp_build.library().hadamard_rescale(
        partial.data_ptr(),
        m,
        n,
        partial.stride(0),
        rows.data_ptr(),
        rows.stride(0) if m > 1 else 0,
        columns.data_ptr(),
        result.data_ptr(),
        _TYPES[result.dtype],
        int(out is not None),
        _threads(m * n),
    )
    return result


def _transform(
    name: str,
    x: Tensor,
    seed: Tensor | None,
    order: int,
    rank: int,
    bits: int,
    per_row: bool,
    rounding: str,
    group: int,
    carrier: str,
    sums: bool = False,
    signs: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """All three, for x [rows, k] whose k is transformed: q [rows, width], scales [groups, rows] or [groups, 1], and
    sums [parts, rows] of x along k, without the signs."""
    rows, k = x.shape
    groups = -(-k // group) if group else 1
    q = torch.empty(rows, padded_kept(k, order, rank), dtype=carrier_dtype(carrier))
    scales = torch.empty(groups, rows if per_row else 1)
    summed = summed_tokens(order, rank)
    added = torch.zeros(-(-k // summed) if sums else 0, rows)
    if rows == 0 or k == 0:
        return q.zero_(), scales.zero_(), added
    require_seed(seed, rounding)
    if x.stride(1) != 1 and x.stride(0) != 1:
        x = x.contiguous()
    along_k = x.stride(1) == 1
    table = _float8_bytes().data_ptr() if carrier == "float8_e4m3" else None
    shape = {"rows": rows, "k": k, "order": order, "rank": rank}
    try:
        library = cpp_build.library()
    except KernelError as error:
        raise failure(name, RuntimeError(error.cause), **shape) from error
    failed = library.hadamard_transform(
        x.data_ptr(),
        _TYPES[x.dtype],
        rows,
        k,
        x.stride(0 if along_k else 1),
        int(along_k),
        order,
        rank,
        qmax(bits),
        scale_factor(bits, normaliser(order, rank, signs is not None)),
        int(per_row),
        _ROUNDINGS[rounding],
        int(seed) if seed is not None else 0,
        group,
        q.data_ptr(),
        q.shape[1],
        scales.data_ptr(),
        added.data_ptr() if sums else None,
        summed,
        signs.data_ptr() if signs is not None else None,
        table,
        _threads(rows * k),
    )
    if failed:
        cause = MemoryError("no memory for the intermediate results of a thread")
        raise failure(name, cause, **shape)
    return q, scales, added


def _threads(elements: int) -> int:
    return max(1, min(torch.get_num_threads(), elements // _ELEMENTS_PER_THREAD))


@functools.cache
def _float8_bytes() -> Any:
    """The float8_e4m3 byte of every int8, by the int8's own byte; -128, which no grid has, is NaN."""
    integers = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(torch.int8).to(torch.float32)
    integers[128] = torch.nan
    return integers.to(torch.float8_e4m3fn)
