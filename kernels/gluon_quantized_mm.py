"""Warp-specialised bodies of ``quantized_mm`` for sm_90: out = Σ_g scale_a[g, :] · scale_b[g, :] · (a_g b_gᵀ).

One warp only asks the bulk copy engine for operands, as far ahead as a ring of ``STAGES`` K-blocks allows. Two or
three groups of four warps multiply: each owns 64 rows of the tile and waits only for the ring, so that while one of
them rescales its partial sums or writes its rows, the tensor cores work for another. Groups of warps start ``STAGGER``
K-blocks apart, and tend to stay so: the one behind catches up while the one ahead writes, and falls behind while it
writes itself.

Partial sums of a *unit* (``STEPS`` K-blocks, at most 256 columns) move to float32 registers before they lose bits: an
FP8 sum because Hopper's tensor cores add with 14 bits, an int32 sum because the next group has other scales.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

__all__ = ["specialised_kernel"]

# Renamed after Triton 3.6.
_barrier = gl.thread_barrier if hasattr(gl, "thread_barrier") else gl.barrier
_fetch = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
_emit = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global

ROWS = gl.constexpr(64)
"""Rows of the tile that one group of four warps multiplies: the height of the instruction."""


@gluon.jit
def _place(tile, tiles_m, tiles_n, GROUP_M: gl.constexpr):
    """Row and column of a tile, GROUP_M rows of tiles at a time, so that programs side by side share operands."""
    width = GROUP_M * tiles_n
    first = (tile // width) * GROUP_M
    height = min(tiles_m - first, GROUP_M)
    return first + (tile % width) % height, (tile % width) // height


@gluon.jit
def _span(items, offsets, tiles, STREAM: gl.constexpr):
    """First, last and step of what this program walks through: rows of the table of pieces, or tiles."""
    if STREAM:
        return gl.load(offsets + gl.program_id(0)), gl.load(offsets + gl.program_id(0) + 1), 1
    else:
        return gl.program_id(0), tiles, gl.num_programs(0)


@gluon.jit
def _piece(items, index, blocks, STREAM: gl.constexpr):
    """Tile, first and last K-block of what is to be done."""
    if STREAM:
        item = items + index * 6
        return gl.load(item), gl.load(item + 1), gl.load(item + 2)
    else:
        return index, 0, blocks


@gluon.jit
def _advance(stage, phase, STAGES: gl.constexpr):
    """The next place of the ring, and whether it was passed an odd number of times."""
    stage += 1
    around = stage == STAGES
    return gl.where(around, 0, stage), gl.where(around, phase ^ 1, phase)


@gluon.jit
def _load(
    a_pointer, b_pointer, items, offsets, a_ring, b_ring, ready, empty, M, N, K, stride_a, stride_b, blocks,
    BLOCK_N: gl.constexpr, BLOCK_K: gl.constexpr, GROUP_M: gl.constexpr, STAGES: gl.constexpr,
    CONSUMERS: gl.constexpr, STREAM: gl.constexpr,
):  # fmt: skip
    """The warp that keeps the ring full."""
    HEIGHT: gl.constexpr = ROWS * CONSUMERS
    a = tma.make_tensor_descriptor(
        a_pointer, shape=[M, K], strides=[stride_a, 1], block_shape=[ROWS, BLOCK_K], layout=a_ring.type.layout
    )
    b = tma.make_tensor_descriptor(
        b_pointer, shape=[N, K], strides=[stride_b, 1], block_shape=[BLOCK_N, BLOCK_K], layout=b_ring.type.layout
    )
    tiles_m = gl.cdiv(M, HEIGHT)
    tiles_n = gl.cdiv(N, BLOCK_N)
    stage = 0
    phase = 0
    begin, end, by = _span(items, offsets, tiles_m * tiles_n, STREAM)
    for index in range(begin, end, by):
        tile, first, last = _piece(items, index, blocks, STREAM)
        tile_m, tile_n = _place(tile, tiles_m, tiles_n, GROUP_M)
        row = tile_m * HEIGHT
        column = tile_n * BLOCK_N
        for block in range(first, last):
            mbarrier.wait(empty.index(stage), phase ^ 1)
            full = ready.index(stage)
            mbarrier.expect(full, (HEIGHT + BLOCK_N) * BLOCK_K)
            k = block * BLOCK_K
            for part in gl.static_range(CONSUMERS):
                _fetch(a, [row + part * ROWS, k], full, a_ring.index(stage * CONSUMERS + part))
            _fetch(b, [column, k], full, b_ring.index(stage))
            stage, phase = _advance(stage, phase, STAGES)


@gluon.jit
def _multiply(
    out_pointer, scale_a, scale_b, bias, partials, arrived, items, offsets,
    a_ring, b_ring, staging, ready, empty,
    M, N, stride_out, step_a, step_b, jump_a, jump_b, blocks,
    PART: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_K: gl.constexpr, GROUP_M: gl.constexpr, STAGES: gl.constexpr,
    CONSUMERS: gl.constexpr, STEPS: gl.constexpr, UNITS: gl.constexpr, SCALED_A: gl.constexpr,
    SCALED_B: gl.constexpr, BIAS: gl.constexpr, STREAM: gl.constexpr, STAGGER: gl.constexpr, STORE_N: gl.constexpr,
):  # fmt: skip
    """Four warps: 64 rows of every tile, from row ``PART`` · 64 on."""
    INTEGER: gl.constexpr = a_ring.dtype == gl.int8
    HEIGHT: gl.constexpr = ROWS * CONSUMERS
    SIZE: gl.constexpr = ROWS * BLOCK_N
    part_type: gl.constexpr = gl.int32 if INTEGER else gl.float32
    total_type: gl.constexpr = part_type if STEPS == 0 else gl.float32
    # Of an instruction: Triton has none of 256 columns for integers, and halves are summed where units are.
    WIDTH: gl.constexpr = 128 if (INTEGER or STEPS > 0) and BLOCK_N > 128 else BLOCK_N
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 32])
    of_rows: gl.constexpr = gl.SliceLayout(1, layout)
    of_columns: gl.constexpr = gl.SliceLayout(0, layout)
    out = tma.make_tensor_descriptor(
        out_pointer, shape=[M, N], strides=[stride_out, 1], block_shape=[ROWS, STORE_N], layout=staging.type.layout
    )
    chunk = staging.index(PART)
    tiles_m = gl.cdiv(M, HEIGHT)
    tiles_n = gl.cdiv(N, BLOCK_N)
    stage = 0
    phase = 0
    before = 0
    rows = gl.arange(0, ROWS, layout=of_rows)
    columns = gl.arange(0, BLOCK_N, layout=of_columns)
    spread = gl.arange(0, BLOCK_N, layout=gl.BlockedLayout([BLOCK_N // 128], [32], [4], [0]))
    begin, end, by = _span(items, offsets, tiles_m * tiles_n, STREAM)
    if STAGGER * PART > 0:
        _, first, last = _piece(items, begin, blocks, STREAM)
        mbarrier.wait(ready.index(STAGGER * PART), 0, pred=last - first > STAGGER * PART)
    for index in range(begin, end, by):
        tile, first, last = _piece(items, index, blocks, STREAM)
        tile_m, tile_n = _place(tile, tiles_m, tiles_n, GROUP_M)
        row = tile_m * HEIGHT + PART * ROWS
        column = tile_n * BLOCK_N
        r = row + rows
        c = column + spread
        # Asked for long before they are used, and of the columns one register a thread until then: a quarter of them,
        # as the tile has them, would take 32.
        if not SCALED_A:
            s = gl.load(scale_a + r * step_a, mask=r < M, other=0.0)
        if not SCALED_B:
            t = gl.load(scale_b + c * step_b, mask=c < N, other=0.0)
        if BIAS:
            shift = gl.load(bias + c, mask=c < N, other=0.0)
        total = gl.zeros([ROWS, BLOCK_N], total_type, layout)
        if STEPS == 0:
            for block in range(first, last):
                mbarrier.wait(ready.index(stage), phase)
                x = a_ring.index(stage * CONSUMERS + PART)
                y = b_ring.index(stage).permute((1, 0))
                token = warpgroup_mma(x, y, total, use_acc=block != first, is_async=True)
                total = warpgroup_mma_wait(1, deps=[token])
                mbarrier.arrive(empty.index(before), pred=block != first)
                before = stage
                stage, phase = _advance(stage, phase, STAGES)
            total = warpgroup_mma_wait(0, deps=[total])
            mbarrier.arrive(empty.index(before))
        else:
            for unit in range(first // STEPS, last // STEPS):
                group = unit // UNITS
                if SCALED_A:
                    s = gl.load(scale_a + group * jump_a + r * step_a, mask=r < M, other=0.0)
                if SCALED_B:
                    t = gl.load(scale_b + group * jump_b + c * step_b, mask=c < N, other=0.0)
                part = gl.zeros([ROWS, BLOCK_N], part_type, layout)
                for step in gl.static_range(STEPS):
                    mbarrier.wait(ready.index(stage), phase)
                    x = a_ring.index(stage * CONSUMERS + PART)
                    y = b_ring.index(stage).permute((1, 0))
                    part = warpgroup_mma(x, y, part, use_acc=step > 0, is_async=True)
                    earlier = before
                    before = stage
                    stage, phase = _advance(stage, phase, STAGES)
                part = warpgroup_mma_wait(0, deps=[part])
                if STEPS == 2:
                    mbarrier.arrive(empty.index(earlier))
                mbarrier.arrive(empty.index(before))
                value = part.to(gl.float32)
                if SCALED_B:
                    value = value * gl.convert_layout(t, of_columns)[None, :]
                if SCALED_A:
                    total += value * s[:, None]
                else:
                    total += value
        complete = True
        if STREAM:
            item = items + index * 6
            pieces = gl.load(item + 4)
            if pieces > 1:
                slot = gl.load(item + 5)
                inside = rows[:, None] * BLOCK_N + columns[None, :]
                place = partials + (slot.to(gl.int64) * CONSUMERS + PART) * SIZE
                gl.store(place + gl.load(item + 3) * (CONSUMERS * SIZE) + inside, total)
                _barrier()  # every thread has stored before one of them says so
                complete = gl.atomic_add(arrived + tile * CONSUMERS + PART, 1, sem="acq_rel") == pieces - 1
                if complete:
                    total = gl.load(place + inside, cache_modifier=".cg")
                    gl.store(arrived + tile * CONSUMERS + PART, 0)
                    for other in range(1, pieces):
                        total += gl.load(place + other * (CONSUMERS * SIZE) + inside, cache_modifier=".cg")
        if complete:
            value = total.to(gl.float32)
            if not SCALED_A:
                value = value * s[:, None]
            if not SCALED_B:
                value = value * gl.convert_layout(t, of_columns)[None, :]
            if BIAS:
                value = value + gl.convert_layout(shift, of_columns).to(gl.float32)[None, :]
            final = value.to(out_pointer.dtype.element_ty)
            if STORE_N == BLOCK_N:
                tma.store_wait(0)
                _barrier()  # the thread that asked for the last copy has seen it leave
                chunk.store(final)
                fence_async_shared()
                _emit(out, [row, column], chunk)
            else:
                halves = final.reshape([ROWS, 2, STORE_N]).permute((0, 2, 1))
                near, far = gl.split(halves)
                tma.store_wait(0)
                _barrier()
                chunk.store(near)
                fence_async_shared()
                _emit(out, [row, column], chunk)
                tma.store_wait(0)
                _barrier()
                chunk.store(far)
                fence_async_shared()
                _emit(out, [row, column + STORE_N], chunk)
    tma.store_wait(0)


@gluon.jit(
    do_not_specialize=["M", "N", "K", "stride_a", "stride_b", "stride_out", "jump_a", "jump_b", "blocks"],
    do_not_specialize_on_alignment=["bias"],
)
def specialised_kernel(
    a_pointer, b_pointer, scale_a, scale_b, out, partials, arrived, items, offsets, bias,
    M, N, K, stride_a, stride_b, stride_out, step_a, step_b, jump_a, jump_b, blocks,
    BLOCK_N: gl.constexpr, BLOCK_K: gl.constexpr, GROUP_M: gl.constexpr, STAGES: gl.constexpr,
    CONSUMERS: gl.constexpr, STEPS: gl.constexpr, UNITS: gl.constexpr, SCALED_A: gl.constexpr,
    SCALED_B: gl.constexpr, BIAS: gl.constexpr, STREAM: gl.constexpr, STAGGER: gl.constexpr, STORE_N: gl.constexpr,
    REGISTERS: gl.constexpr,
):  # fmt: skip
    """Tiles of 64 · CONSUMERS × BLOCK_N.

    ``STEPS`` K-blocks are a unit, 0: all of K is one. ``UNITS`` of them are a group, which has scales of its own where
    ``SCALED_A`` or ``SCALED_B``; other scales apply to the result. ``blocks``: K-blocks of a tile, whole units.
    ``STREAM``: pieces of tiles from the table ``items``, ``offsets`` (see ``triton_quantized_mm.stream_kernel``), with
    ``arrived`` int32 [tiles · CONSUMERS] and ``partials`` [slots, 64 · CONSUMERS · BLOCK_N]; else whole tiles.
    ``REGISTERS`` of a thread that multiplies.
    """
    kind: gl.constexpr = a_pointer.dtype.element_ty
    swizzle: gl.constexpr = BLOCK_K if BLOCK_K < 128 else 128
    operand: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=swizzle, element_bitwidth=8, rank=2)
    result: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    a_ring = gl.allocate_shared_memory(kind, [STAGES * CONSUMERS, ROWS, BLOCK_K], operand)
    b_ring = gl.allocate_shared_memory(kind, [STAGES, BLOCK_N, BLOCK_K], operand)
    staging = gl.allocate_shared_memory(out.dtype.element_ty, [CONSUMERS, ROWS, STORE_N], result)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
        mbarrier.init(empty.index(stage), count=CONSUMERS)
    fence_async_shared()
    # The tuples are written out in place: constants assigned to a name would become values.
    if CONSUMERS == 2:
        gl.warp_specialize([
            (_multiply, (
                out, scale_a, scale_b, bias, partials, arrived, items, offsets, a_ring, b_ring, staging, ready, empty,
                M, N, stride_out, step_a, step_b, jump_a, jump_b, blocks, 0, BLOCK_N, BLOCK_K, GROUP_M, STAGES,
                CONSUMERS, STEPS, UNITS, SCALED_A, SCALED_B, BIAS, STREAM, STAGGER, STORE_N,
            )),
            (_multiply, (
                out, scale_a, scale_b, bias, partials, arrived, items, offsets, a_ring, b_ring, staging, ready, empty,
                M, N, stride_out, step_a, step_b, jump_a, jump_b, blocks, 1, BLOCK_N, BLOCK_K, GROUP_M, STAGES,
                CONSUMERS, STEPS, UNITS, SCALED_A, SCALED_B, BIAS, STREAM, STAGGER, STORE_N,
            )),
            (_load, (
                a_pointer, b_pointer, items, offsets, a_ring, b_ring, ready, empty, M, N, K, stride_a, stride_b, blocks,
                BLOCK_N, BLOCK_K, GROUP_M, STAGES, CONSUMERS, STREAM,
            )),
        ], [4, 1], [REGISTERS, 24])  # fmt: skip
    else:
        gl.warp_specialize([
            (_multiply, (
                out, scale_a, scale_b, bias, partials, arrived, items, offsets, a_ring, b_ring, staging, ready, empty,
                M, N, stride_out, step_a, step_b, jump_a, jump_b, blocks, 0, BLOCK_N, BLOCK_K, GROUP_M, STAGES,
                CONSUMERS, STEPS, UNITS, SCALED_A, SCALED_B, BIAS, STREAM, STAGGER, STORE_N,
            )),
            (_multiply, (
                out, scale_a, scale_b, bias, partials, arrived, items, offsets, a_ring, b_ring, staging, ready, empty,
                M, N, stride_out, step_a, step_b, jump_a, jump_b, blocks, 1, BLOCK_N, BLOCK_K, GROUP_M, STAGES,
                CONSUMERS, STEPS, UNITS, SCALED_A, SCALED_B, BIAS, STREAM, STAGGER, STORE_N,
            )),
            (_multiply, (
                out, scale_a, scale_b, bias, partials, arrived, items, offsets, a_ring, b_ring, staging, ready, empty,
                M, N, stride_out, step_a, step_b, jump_a, jump_b, blocks, 2, BLOCK_N, BLOCK_K, GROUP_M, STAGES,
                CONSUMERS, STEPS, UNITS, SCALED_A, SCALED_B, BIAS, STREAM, STAGGER, STORE_N,
            )),
            (_load, (
                a_pointer, b_pointer, items, offsets, a_ring, b_ring, ready, empty, M, N, K, stride_a, stride_b, blocks,
                BLOCK_N, BLOCK_K, GROUP_M, STAGES, CONSUMERS, STREAM,
            )),
        ], [4, 4, 1], [REGISTERS, REGISTERS, 24])  # fmt: skip
