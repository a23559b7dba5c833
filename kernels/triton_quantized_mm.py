"""Triton bodies of ``quantized_mm``: out = Σ_g scale_a[g, :] · scale_b[g, :] · (a_g b_gᵀ).

Two ways to deal out the work. ``tiles_kernel``: a persistent grid, each program computes whole tiles of the result, in
an order that keeps neighbours in the cache. ``stream_kernel``: for few tiles and a long contraction (g_w), tiles that
do not fill a wave are cut along K into equal shares, one per program, and the last program to arrive at a tile adds
them up, in a fixed order (after stream-K, arXiv 2301.03598; the shares are arranged for the cache). So a result never
depends on timing: integer sums are exact, and sums of groups are always added in the same order.

On sm_90 and later operands come through the bulk copy engine (``TMA``), written as device-side descriptors; elsewhere,
and where a row does not start at a multiple of 16 bytes, through masked loads of the same tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["stream_kernel", "tiles_kernel"]


@triton.jit
def _operand(pointer, rows, k, stride, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, TMA: tl.constexpr):
    """What ``_load`` reads from: a descriptor of the matrix [rows, k], or the pointer itself."""
    if TMA:
        return tl.make_tensor_descriptor(pointer, shape=[rows, k], strides=[stride, 1], block_shape=[BLOCK, BLOCK_K])
    else:
        return pointer


@triton.jit
def _load(source, row, column, rows, end, stride, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, TMA: tl.constexpr):
    """The tile at (row, column); zeros outside the rows and from column ``end`` on."""
    if TMA:
        return source.load([row, column])
    else:
        r = row + tl.arange(0, BLOCK)
        c = column + tl.arange(0, BLOCK_K)
        mask = (r < rows)[:, None] & (c < end)[None, :]
        return tl.load(source + r.to(tl.int64)[:, None] * stride + c[None, :], mask=mask, other=0.0)


@triton.jit
def _scales(pointer, row, rows, step, BLOCK: tl.constexpr):
    """BLOCK scales from ``row`` on; ``step`` 0 repeats one scale."""
    r = row + tl.arange(0, BLOCK)
    return tl.load(pointer + r * step, mask=r < rows, other=0.0)


@triton.jit
def _accumulate(
    a, b, scale_a, scale_b, row, column, begin, end,
    M, N, K, stride_a, stride_b, group_k, step_a, step_b, jump_a, jump_b,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    INTEGER: tl.constexpr, STEPS: tl.constexpr, TMA: tl.constexpr, PROMOTE: tl.constexpr,
):  # fmt: skip
    """Sum over the K-blocks ``begin``..``end``: unscaled (STEPS 0), or scaled per group of STEPS blocks (float32)."""
    part_type: tl.constexpr = tl.int32 if INTEGER else tl.float32
    part = tl.zeros((BLOCK_M, BLOCK_N), dtype=part_type)
    if STEPS == 0:
        for block in range(begin, end):
            k = block * BLOCK_K
            x = _load(a, row, k, M, K, stride_a, BLOCK_M, BLOCK_K, TMA)
            y = _load(b, column, k, N, K, stride_b, BLOCK_N, BLOCK_K, TMA)
            part = tl.dot(x, y.T, part, out_dtype=part_type, max_num_imprecise_acc=PROMOTE)
        return part
    else:
        total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        s = tl.zeros((BLOCK_M,), dtype=tl.float32)
        t = tl.zeros((BLOCK_N,), dtype=tl.float32)
        for block in range(begin, end):
            group = block // STEPS
            k = group * group_k + (block % STEPS) * BLOCK_K
            stop = min((group + 1) * group_k, K)
            if block % STEPS == 0:  # asked for well before they are used, so that they arrive behind the products
                s = _scales(scale_a + group * jump_a, row, M, step_a, BLOCK_M)
                t = _scales(scale_b + group * jump_b, column, N, step_b, BLOCK_N)
            x = _load(a, row, k, M, stop, stride_a, BLOCK_M, BLOCK_K, TMA)
            y = _load(b, column, k, N, stop, stride_b, BLOCK_N, BLOCK_K, TMA)
            part = tl.dot(x, y.T, part, out_dtype=part_type, max_num_imprecise_acc=PROMOTE)
            if block % STEPS == STEPS - 1:
                total += part.to(tl.float32) * s[:, None] * t[None, :]
                part = tl.zeros((BLOCK_M, BLOCK_N), dtype=part_type)
        return total


@triton.jit
def _finished(
    total, scale_a, scale_b, bias, row, column, M, N, step_a, step_b,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STEPS: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """One tile in float32, scaled (unless the groups were) and biased."""
    value = total.to(tl.float32)
    if STEPS == 0:
        value = value * _scales(scale_a, row, M, step_a, BLOCK_M)[:, None]
        value = value * _scales(scale_b, column, N, step_b, BLOCK_N)[None, :]
    if BIAS:
        value = value + _scales(bias, column, N, 1, BLOCK_N).to(tl.float32)[None, :]
    return value


@triton.jit
def _write(
    total, out, scale_a, scale_b, bias, row, column, M, N, stride, step_a, step_b,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STEPS: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Finish and store one tile."""
    value = _finished(total, scale_a, scale_b, bias, row, column, M, N, step_a, step_b, BLOCK_M, BLOCK_N, STEPS, BIAS)
    r = row + tl.arange(0, BLOCK_M)
    c = column + tl.arange(0, BLOCK_N)
    mask = (r < M)[:, None] & (c < N)[None, :]
    tl.store(out + r.to(tl.int64)[:, None] * stride + c[None, :], value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _place(tile, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """Row and column of a tile, GROUP_M rows of tiles at a time, so that programs side by side share operands."""
    width = GROUP_M * tiles_n
    first = (tile // width) * GROUP_M
    height = min(tiles_m - first, GROUP_M)
    return first + (tile % width) % height, (tile % width) // height


@triton.jit(do_not_specialize_on_alignment=["bias"])
def tiles_kernel(
    a_pointer, b_pointer, scale_a, scale_b, out, bias,
    M, N, K, stride_a, stride_b, stride_out, group_k, step_a, step_b, jump_a, jump_b, blocks,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    STEPS: tl.constexpr, TMA: tl.constexpr, PROMOTE: tl.constexpr, BIAS: tl.constexpr, TMA_STORE: tl.constexpr,
    FLATTEN: tl.constexpr,
):  # fmt: skip
    """Whole tiles, persistently. ``blocks``: K-blocks of a tile."""
    INTEGER: tl.constexpr = a_pointer.dtype.element_ty == tl.int8
    a = _operand(a_pointer, M, K, stride_a, BLOCK_M, BLOCK_K, TMA)
    b = _operand(b_pointer, N, K, stride_b, BLOCK_N, BLOCK_K, TMA)
    if TMA_STORE:
        target = tl.make_tensor_descriptor(
            out, shape=[M, N], strides=[stride_out, 1], block_shape=[BLOCK_M, BLOCK_N // 2]
        )
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=FLATTEN):
        tile_m, tile_n = _place(tile, tiles_m, tiles_n, GROUP_M)
        row = tile_m * BLOCK_M
        column = tile_n * BLOCK_N
        total = _accumulate(
            a, b, scale_a, scale_b, row, column, 0, blocks,
            M, N, K, stride_a, stride_b, group_k, step_a, step_b, jump_a, jump_b,
            BLOCK_M, BLOCK_N, BLOCK_K, INTEGER, STEPS, TMA, PROMOTE,
        )  # fmt: skip
        if TMA_STORE:
            value = _finished(
                total, scale_a, scale_b, bias, row, column, M, N, step_a, step_b, BLOCK_M, BLOCK_N, STEPS, BIAS
            )
            # Half a tile at a time, so that the staging buffer leaves room for one more stage of operands.
            halves = tl.permute(tl.reshape(value.to(out.dtype.element_ty), (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1))
            left, right = tl.split(halves)
            target.store([row, column], left)
            target.store([row, column + BLOCK_N // 2], right)
        else:
            _write(
                total, out, scale_a, scale_b, bias, row, column, M, N, stride_out, step_a, step_b,
                BLOCK_M, BLOCK_N, STEPS, BIAS,
            )  # fmt: skip


@triton.jit(do_not_specialize_on_alignment=["bias"])
def stream_kernel(
    a_pointer, b_pointer, scale_a, scale_b, out, partials, arrived, items, offsets, bias,
    M, N, K, stride_a, stride_b, stride_out, group_k, step_a, step_b, jump_a, jump_b, blocks,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
    STEPS: tl.constexpr, TMA: tl.constexpr, PROMOTE: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Pieces of tiles, dealt out by the host (``quantized_mm_shares``).

    ``offsets`` int32 [programs + 1]: the items of a program. ``items`` int32 [·, 6]: tile, first and last K-block, this
    piece's number among the pieces of the tile, their count, the slot of the first of them in ``partials``.
    ``partials`` [slots, BLOCK_M · BLOCK_N], int32 or float32, uninitialised; ``arrived`` int32 [tiles], zeros before
    and after: pieces that are ready. No program waits for another: the last one to arrive at a tile adds its pieces up,
    in order.
    """
    INTEGER: tl.constexpr = a_pointer.dtype.element_ty == tl.int8
    SIZE: tl.constexpr = BLOCK_M * BLOCK_N
    a = _operand(a_pointer, M, K, stride_a, BLOCK_M, BLOCK_K, TMA)
    b = _operand(b_pointer, N, K, stride_b, BLOCK_N, BLOCK_K, TMA)
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    inside = tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    index = tl.load(offsets + tl.program_id(0))
    stop = tl.load(offsets + tl.program_id(0) + 1)
    while index < stop:
        item = items + index * 6
        tile = tl.load(item)
        pieces = tl.load(item + 4)
        tile_m, tile_n = _place(tile, tiles_m, tiles_n, GROUP_M)
        row = tile_m * BLOCK_M
        column = tile_n * BLOCK_N
        total = _accumulate(
            a, b, scale_a, scale_b, row, column, tl.load(item + 1), tl.load(item + 2),
            M, N, K, stride_a, stride_b, group_k, step_a, step_b, jump_a, jump_b,
            BLOCK_M, BLOCK_N, BLOCK_K, INTEGER, STEPS, TMA, PROMOTE,
        )  # fmt: skip
        complete = pieces == 1
        if pieces > 1:
            slots = partials + tl.load(item + 5).to(tl.int64) * SIZE + inside
            tl.store(slots + tl.load(item + 3) * SIZE, total)
            tl.debug_barrier()  # every thread has stored before one of them says so
            complete = tl.atomic_add(arrived + tile, 1, sem="acq_rel") == pieces - 1
            if complete:
                total = tl.load(slots, cache_modifier=".cg")  # written by other processors: not from L1
                tl.store(arrived + tile, 0)
                for other in range(1, pieces):
                    total += tl.load(slots + other * SIZE, cache_modifier=".cg")
        if complete:
            _write(
                total, out, scale_a, scale_b, bias, row, column, M, N, stride_out, step_a, step_b,
                BLOCK_M, BLOCK_N, STEPS, BIAS,
            )  # fmt: skip
        index += 1
