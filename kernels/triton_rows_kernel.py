"""The Triton kernel behind quantize_rows (CUDA; the interpreter runs the same code for the tests). Needs no torch.

A tile [ROWS·PIECES, WIDTH] holds ROWS chunks of rows: PIECES pieces of WIDTH columns make a chunk, so the
block-diagonal product needs no reshape of what was loaded. A row of up to four chunks is held in registers (HOLD); a
longer one is passed over twice (scale, then integers), the second time out of the L2 cache. One scale per tensor takes
two launches, the first with an atomic maximum on the bits of the magnitudes.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_transform import (
    exact_dot,
    floored,
    in_order,
    larger_magnitude,
    magnitude_bits,
    quantising_factor,
    rounded,
    row_matrix,
    seed_word,
    weyl,
)

__all__ = ["AMAX", "FUSED", "QUANTISE"]

FUSED, AMAX, QUANTISE = 0, 1, 2
_FUSED, _AMAX, _QUANTISE = tl.constexpr(FUSED), tl.constexpr(AMAX), tl.constexpr(QUANTISE)


@triton.jit
def _chunk(x, row, first, rows, columns, stride_row, matrix, PIECES: tl.constexpr, WIDTH: tl.constexpr):
    """v of one chunk of columns of the tile's rows: float32 [ROWS, PIECES·WIDTH]."""
    ROWS: tl.constexpr = row.shape[0]
    piece = tl.arange(0, ROWS * PIECES)
    row = tl.reshape(tl.broadcast_to(row[:, None], (ROWS, PIECES)), (ROWS * PIECES,))
    column = first + (piece % PIECES)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]
    pointer = x + row[:, None].to(tl.int64) * stride_row + column
    tile = tl.load(pointer, mask=(row[:, None] < rows) & (column < columns), other=0.0)
    return tl.reshape(in_order(exact_dot(tile, matrix)), (ROWS, PIECES * WIDTH))


@triton.jit(do_not_specialize_on_alignment=["seed"])
def _rows_kernel(
    x,
    q,
    scale,
    amax_bits,
    seed,
    rows,
    columns,
    padded,
    stride_row,
    scale_per_amax,
    QMAX: tl.constexpr,
    ORDER: tl.constexpr,
    LOG_ORDER: tl.constexpr,
    ROUNDING: tl.constexpr,
    MATRIX: tl.constexpr,
    PHASE: tl.constexpr,
    CHUNKS: tl.constexpr,
    HOLD: tl.constexpr,
    ROWS: tl.constexpr,
    PIECES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    matrix = row_matrix(WIDTH, ORDER, LOG_ORDER, MATRIX)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    CHUNK: tl.constexpr = PIECES * WIDTH

    held = ()
    if PHASE == _QUANTISE:
        bits = tl.broadcast_to(tl.load(amax_bits), (ROWS,))
    elif HOLD:
        largest = tl.zeros((ROWS, CHUNK), tl.float32)
        for chunk in tl.static_range(CHUNKS):
            v = _chunk(x, row, chunk * CHUNK, rows, columns, stride_row, matrix, PIECES, WIDTH)
            largest = larger_magnitude(largest, v)
            held = held + (v,)  # noqa: RUF005 (no starred tuples in Triton)
        bits = tl.max(magnitude_bits(largest), 1)
    else:
        largest = tl.zeros((ROWS, CHUNK), tl.float32)
        for chunk in range(CHUNKS):
            v = _chunk(x, row, chunk * CHUNK, rows, columns, stride_row, matrix, PIECES, WIDTH)
            largest = larger_magnitude(largest, v)
        bits = tl.max(magnitude_bits(largest), 1)

    if PHASE == _AMAX:
        tl.atomic_max(amax_bits, tl.max(bits, 0), sem="relaxed")
    else:
        amax = floored(bits)
        if PHASE == _FUSED:
            tl.store(scale + row, amax * scale_per_amax, mask=row < rows)
        elif tl.program_id(0) == 0:
            tl.store(scale, tl.max(amax, 0) * scale_per_amax)
        factor = quantising_factor(amax, QMAX, ROUNDING)[:, None]
        counter = weyl(row.to(tl.uint32) * padded.to(tl.uint32))[:, None] + seed_word(seed, ROUNDING)
        draws = weyl(tl.arange(0, CHUNK))[None, :]
        target = q + row[:, None].to(tl.int64) * padded
        if HOLD:
            for chunk in tl.static_range(CHUNKS):
                column = chunk * CHUNK + tl.arange(0, CHUNK)[None, :]
                integers = rounded(
                    held[chunk], factor, (counter + weyl(chunk * CHUNK)) + draws, ROUNDING, q.dtype.element_ty
                )
                tl.store(target + column, integers, mask=(row[:, None] < rows) & (column < padded))
        else:
            for chunk in range(CHUNKS):
                v = _chunk(x, row, chunk * CHUNK, rows, columns, stride_row, matrix, PIECES, WIDTH)
                column = chunk * CHUNK + tl.arange(0, CHUNK)[None, :]
                integers = rounded(v, factor, (counter + weyl(chunk * CHUNK)) + draws, ROUNDING, q.dtype.element_ty)
                tl.store(target + column, integers, mask=(row[:, None] < rows) & (column < padded))
