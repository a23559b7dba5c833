"""The launcher of the Triton kernel behind quantize_rows; see ``triton_rows_kernel.py``."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .library import failure
from .rounding import require_seed
from .scaling import carrier_dtype, padded_columns, qmax, scale_factor
from .triton_launch import Launch
from .triton_rows_kernel import AMAX, FUSED, QUANTISE, _rows_kernel
from .triton_transform import CODES, fusion, matrix_dtype

__all__ = ["CODES", "quantize_rows"]

LARGEST_TILE = 8192
"""Values that one program holds at once, in registers."""


@functools.lru_cache(maxsize=4096)
def _tile(padded: int, order: int, phases: int) -> dict[str, Any]:
    """Tile sizes for rows of ``padded`` columns; see ``_rows_kernel``. Measured on an H200 (benchmarks/results).

    The chunk is the power of two that covers a row with the least waste in at most four pieces.
    """
    width = max(order, 16)
    hold = phases == 1 and padded <= LARGEST_TILE
    chunk = max(width, min(triton.next_power_of_2(padded), LARGEST_TILE))
    if hold:
        candidates = [chunk >> shift for shift in range(3) if chunk >> shift >= max(width, 256)] or [chunk]
        chunk = min(candidates, key=lambda size: (-(-padded // size) * size, -size))
    pieces, chunks = chunk // width, -(-padded // chunk)
    rows = max(1, LARGEST_TILE // (chunk * chunks if hold else chunk))
    rows = 1 << (rows.bit_length() - 1)
    while rows * pieces < 16:  # the smallest left operand of a product
        rows *= 2
    return {"ROWS": rows, "PIECES": pieces, "WIDTH": width, "CHUNKS": chunks, "HOLD": hold, "num_warps": 4}


def quantize_rows(
    x: Tensor,
    seed: Tensor | None,
    order: int,
    bits: int,
    scale: str,
    rounding: str,
    carrier: str,
    tile: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """The operator on CUDA tensors; ``tile`` overrides the tile sizes (benchmarks).

    Raises:
        KernelError: the kernel does not compile or launch.
    """
    if x.stride(1) != 1:
        x = x.contiguous()  # cheaper than to read it one element at a time, twice
    require_seed(seed, rounding)
    settings = (order, bits, scale == "token", (rounding, seed is not None), carrier)
    plan = _plan(*x.shape, x.stride(0), x.dtype, *settings, None if tile is None else tuple(tile.items()))
    q = torch.empty(plan.q, dtype=plan.carrier, device=x.device)
    scales = torch.empty(plan.scales, dtype=torch.float32, device=x.device)
    if not plan.launches:
        return q.zero_(), scales.zero_()
    amax_bits = scales if len(plan.launches) == 1 else torch.zeros((1,), dtype=torch.int32, device=x.device)
    try:
        for launch in plan.launches:
            launch(x, q, scales, amax_bits, x if seed is None else seed)
    except Exception as error:
        shape = {"R": x.shape[0], "K": x.shape[1], "order": order, "dtype": x.dtype, "tile": tile}
        raise failure("quantize_rows", error, **shape) from error
    return q, scales


class _Plan(NamedTuple):
    """What a shape decides: shapes of the results, and the launches."""

    q: tuple[int, int]
    carrier: torch.dtype
    scales: tuple[int, int]
    launches: tuple[Launch, ...]


@functools.lru_cache(maxsize=4096)
def _plan(
    rows: int,
    columns: int,
    stride_row: int,
    dtype: torch.dtype,
    order: int,
    bits: int,
    token: bool,
    rounds: tuple[str, bool],
    carrier: str,
    chosen: tuple[tuple[str, Any], ...] | None,
) -> _Plan:
    """``rounds``: the rounding and whether there is a seed, whose dtype the kernel is compiled for."""
    padded = padded_columns(columns, order)
    shape = _Plan((rows, padded), carrier_dtype(carrier), (1, rows if token else 1), ())
    if rows == 0 or columns == 0:
        return shape
    tile = dict(chosen) if chosen else _tile(padded, order, 1 if token else 2)
    numbers = (rows, columns, padded, stride_row, scale_factor(bits, order))
    transform = (qmax(bits), order, order.bit_length() - 1, CODES[rounds[0]], matrix_dtype(dtype))
    sizes = (tile["CHUNKS"], tile["HOLD"], tile["ROWS"], tile["PIECES"], tile["WIDTH"])
    programs, options = -(-rows // tile["ROWS"]), {"num_warps": tile["num_warps"], **fusion(rounds[0])}
    launches = tuple(
        Launch(_rows_kernel, programs, (*numbers, *transform, phase, *sizes), options, loose=1)
        for phase in ((FUSED,) if token else (AMAX, QUANTISE))
    )
    return shape._replace(launches=launches)
