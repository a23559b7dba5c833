"""The Triton kernel behind compress_tokens and quantize_weight, and its launcher.

A tile [tokens, CHANNELS] is transposed into the left operand of a product with (I ⊗ Ĥ)ᵀ, which yields [CHANNELS, kept]
as the result is stored: K-major.

A scale is known once all its tokens were seen, so they are read twice. A short group of tokens is passed over twice by
one program. Otherwise one launch holds programs of two kinds, which take turns slab by slab, a slab being CHANNELS
channels of a group: the first kind finds the largest magnitude, the second, ``lag`` slabs later, quantises what it
then finds in the L2 cache. A program of the second kind waits for the last of the first kind of its slab; these have
lower numbers, and programs are started in the order of their numbers, so that they never wait for one that waits.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import workspace
from .library import failure
from .rounding import require_seed
from .scaling import carrier_dtype, padded_kept, qmax, scale_factor, summed_tokens
from .triton_launch import Launch
from .triton_rows import CODES
from .triton_transform import (
    exact_dot,
    floored,
    in_order,
    larger_magnitude,
    magnitude_bits,
    matrix_dtype,
    quantising_factor,
    rounded,
    seed_word,
    token_matrix,
    weyl,
)

__all__ = ["compress_tokens"]


@triton.jit
def _transformed(
    x,
    channel,
    block,
    end,
    tokens,
    channels,
    stride_token,
    matrix,
    ORDER: tl.constexpr,
    EVEN: tl.constexpr,
):
    """v [CHANNELS, BLOCKS·KEPT] of the tile whose first block of tokens is ``block``; tokens from ``end`` on are 0."""
    token = block * ORDER + tl.arange(0, matrix.shape[0])
    pointer = x + token[:, None].to(tl.int64) * stride_token + channel[None, :]
    if EVEN:
        tile = tl.load(pointer)
    else:
        inside = (token < tokens) & (token < end * ORDER)
        tile = tl.load(pointer, mask=inside[:, None] & (channel < channels)[None, :], other=0.0)
    return in_order(exact_dot(tl.trans(tile), matrix))


@triton.jit
def _columns(BLOCKS: tl.constexpr, KEPT: tl.constexpr, RANK: tl.constexpr):
    """Columns of q [1, BLOCKS·KEPT] that a tile's results go to, counted from the tile's first."""
    kept = tl.arange(0, BLOCKS * KEPT)[None, :]
    return kept // KEPT * RANK + kept % KEPT


@triton.jit
def _exist(block, end, padded, BLOCKS: tl.constexpr, KEPT: tl.constexpr, RANK: tl.constexpr):
    """Which of these columns exist, for the tile whose first block is ``block``."""
    kept = tl.arange(0, BLOCKS * KEPT)[None, :]
    column = block * RANK + _columns(BLOCKS, KEPT, RANK)
    return (kept % KEPT < RANK) & (block + kept // KEPT < end) & (column < padded)


@triton.jit
def _slab(step, slabs, lag):
    """(the slab of a step, whether the step quantises it): ``lag`` first steps, then both kinds in turn."""
    turn = step - lag
    left = step - slabs
    quantises = (left >= slabs - lag) | ((turn >= 0) & (turn % 2 == 1))
    slab = tl.where(
        left >= slabs - lag, left, tl.where(turn < 0, step, tl.where(quantises, turn // 2, lag + turn // 2))
    )
    return slab, quantises


@triton.jit(
    do_not_specialize=["total", "per_group", "span", "parts", "slabs", "groups", "lag"],
    do_not_specialize_on_alignment=["seed"],
)
def _tokens_kernel(
    x,
    q,
    scale,
    sums,
    scratch,
    seed,
    tokens,
    channels,
    padded,
    total,
    per_group,
    span,
    parts,
    slabs,
    groups,
    lag,
    stride_token,
    scale_per_amax,
    QMAX: tl.constexpr,
    ORDER: tl.constexpr,
    LOG_ORDER: tl.constexpr,
    RANK: tl.constexpr,
    KEPT: tl.constexpr,
    ROUNDING: tl.constexpr,
    MATRIX: tl.constexpr,
    CHANNELWISE: tl.constexpr,
    FUSED: tl.constexpr,
    SUMS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCKS: tl.constexpr,
    EVEN: tl.constexpr,
):
    """``total`` blocks in groups of ``per_group``; a program takes ``span`` blocks, one of ``parts`` of its group.

    EVEN: every tile is whole, and nothing needs a mask, which would take a fifth of the instructions.

    ``scratch`` is zeros before and after: how many programs of either kind are done, for every scale's extent (a slab,
    or a group where all channels share a scale), then the bits of the largest magnitudes.
    """
    matrix = token_matrix(BLOCKS, ORDER, LOG_ORDER, RANK, KEPT, MATRIX)
    part = tl.program_id(0) % parts
    if FUSED:
        slab, quantises = tl.program_id(0), True
    else:
        slab, quantises = _slab(tl.program_id(0) // parts, slabs, lag)
    strips = slabs // groups  # neighbours in memory are neighbours in time
    group = slab // strips
    channel = slab % strips * CHANNELS + tl.arange(0, CHANNELS)
    limit = tl.where(group == groups - 1, total, (group + 1) * per_group)
    start = group * per_group + part * span
    end = tl.where(part == parts - 1, limit, tl.minimum(start + span, limit))
    extent = group * channels + channel if CHANNELWISE else group + channel * 0
    sharing = parts if CHANNELWISE else parts * strips
    done = scratch + 2 * (slab if CHANNELWISE else group)
    magnitudes = scratch + 2 * (slabs if CHANNELWISE else groups) + extent

    amax = tl.zeros((CHANNELS,), tl.float32)
    if FUSED or not quantises:
        largest = tl.zeros((CHANNELS, BLOCKS * KEPT), tl.float32)
        added = tl.zeros((CHANNELS, BLOCKS * KEPT), tl.float32)
        for block in range(start, end, BLOCKS):
            v = _transformed(x, channel, block, end, tokens, channels, stride_token, matrix, ORDER, EVEN)
            largest = larger_magnitude(largest, v)
            if SUMS:
                added += v
        bits = tl.max(magnitude_bits(largest), 1)
        if SUMS:  # the lowest sequency of a block is the sum of its tokens
            first = tl.arange(0, BLOCKS * KEPT)[None, :] % KEPT == 0
            summed = tl.sum(tl.where(first, added, 0.0), 1)
            # The last part may hold nothing but the padding of q.
            exists = (channel < channels) & (start * ORDER + channel * 0 < tokens)
            tl.store(sums + part * channels + channel, summed, mask=exists)
        if FUSED:
            amax = floored(bits)
        else:
            if CHANNELWISE:
                tl.atomic_max(magnitudes, bits, mask=channel < channels, sem="relaxed")
            else:
                tl.atomic_max(scratch + 2 * groups + group, tl.max(bits, 0), sem="relaxed")
            tl.debug_barrier()  # every thread has written before one of them says so
            tl.atomic_add(done, 1, sem="release")

    if quantises:
        if not FUSED:
            while tl.atomic_add(done, 0, sem="acquire") < sharing:
                pass
            # Written by other processors: not from L1.
            amax = floored(tl.load(magnitudes, mask=channel < channels, other=0, cache_modifier=".cg"))
        if part == 0:
            tl.store(scale + extent, amax * scale_per_amax, mask=channel < channels)
        factor = quantising_factor(amax, QMAX, ROUNDING)[:, None]
        counter = weyl(channel.to(tl.uint32) * padded.to(tl.uint32))[:, None] + seed_word(seed, ROUNDING)
        column = _columns(BLOCKS, KEPT, RANK)
        draws = weyl(column)
        target = q + channel[:, None].to(tl.int64) * padded + column
        alive = (channel < channels)[:, None]
        for block in range(start, end, BLOCKS):
            v = _transformed(x, channel, block, end, tokens, channels, stride_token, matrix, ORDER, EVEN)
            integers = rounded(v, factor, (counter + weyl(block * RANK)) + draws, ROUNDING, q.dtype.element_ty)
            if EVEN:
                tl.store(target + block * RANK, integers)
            else:
                inside = _exist(block, end, padded, BLOCKS, KEPT, RANK)
                tl.store(target + block * RANK, integers, mask=alive & inside)
        if not FUSED:
            tl.debug_barrier()  # every thread has read the magnitudes
            if tl.atomic_add(done + 1, 1, sem="acq_rel") == sharing - 1:
                tl.store(done, 0)
                tl.store(done + 1, 0)
                tl.store(magnitudes, tl.zeros((CHANNELS,), tl.int32), mask=channel < channels)


GROUP_TOKENS = 1024
"""Longest group of tokens that one program passes over twice."""
AHEAD = 384
"""Programs between the two reads of a slab: as many as run at a time, few enough for the L2 cache to hold the slab."""


@functools.lru_cache(maxsize=4096)
def _tile(order: int, kept: int, itemsize: int, fused: bool) -> dict[str, Any]:
    """Tile sizes; see ``_tokens_kernel``. Measured on an H200 (benchmarks/results).

    A float32 tile takes the room of two, and its three parts the registers: it is half as long, on twice the warps.
    """
    wide = itemsize > 2
    blocks = max(1, min((128 if fused and not wide else 64) // order, 64 // kept))
    while blocks * kept < 16 or blocks * order < 16:  # the smallest right operand of a product
        blocks *= 2
    stages = 2 if wide or blocks * order > 128 else 3
    return {"CHANNELS": 64, "BLOCKS": blocks, "num_warps": 8 if wide else 4, "num_stages": stages}


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
    carrier: str = "int8",
    tile: dict[str, Any] | None = None,
    kernel: str = "compress_tokens",
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator on CUDA tensors; ``tile`` overrides the tile sizes (benchmarks), ``kernel`` is the name in errors.

    Raises:
        KernelError: the kernel does not compile or launch.
    """
    if x.stride(1) != 1:
        x = x.contiguous()  # cheaper than to read it one element at a time, twice
    require_seed(seed, rounding)
    rounds = (rounding, seed is not None)
    settings = (order, rank, bits, scale == "channel", rounds, group, sums, carrier)
    plan = _plan(*x.shape, x.stride(0), x.dtype, *settings, None if tile is None else tuple(tile.items()))
    device = x.device
    q = torch.empty(plan.q, dtype=plan.carrier, device=device)
    scales = torch.empty(plan.scales, dtype=torch.float32, device=device)
    added = torch.empty(plan.sums, dtype=torch.float32, device=device)
    if plan.launch is None:
        return q.zero_(), scales.zero_(), added.zero_()
    scratch = workspace.zeros(plan.counters, x) if plan.counters else scales
    try:
        plan.launch(x, q, scales, added, scratch, x if seed is None else seed)
    except Exception as error:
        shape = {"L": x.shape[0], "C": x.shape[1], "order": order, "rank": rank, "dtype": x.dtype, "tile": tile}
        raise failure(kernel, error, **shape) from error
    return q, scales, added


class _Plan(NamedTuple):
    """What a shape decides: shapes of the results, int32 zeros that the launch needs, and the launch."""

    q: tuple[int, int]
    carrier: torch.dtype
    scales: tuple[int, int]
    sums: tuple[int, int]
    counters: int
    launch: Launch | None


@functools.lru_cache(maxsize=4096)
def _plan(
    tokens: int,
    channels: int,
    stride_token: int,
    dtype: torch.dtype,
    order: int,
    rank: int,
    bits: int,
    channelwise: bool,
    rounds: tuple[str, bool],
    group: int,
    sums: bool,
    carrier: str,
    chosen: tuple[tuple[str, Any], ...] | None,
) -> _Plan:
    """``rounds``: the rounding and whether there is a seed, whose dtype the kernel is compiled for."""
    padded = padded_kept(tokens, order, rank)
    groups = -(-tokens // group) if group else 1
    span_tokens = summed_tokens(order, rank)
    shape = _Plan(
        (channels, padded),
        carrier_dtype(carrier),
        (groups, channels if channelwise else 1),
        (-(-tokens // span_tokens) if sums else 0, channels),
        0,
        None,
    )
    if tokens == 0 or channels == 0:
        return shape
    kept = triton.next_power_of_2(rank)
    fused = channelwise and (group or tokens) <= (GROUP_TOKENS if group else span_tokens)
    tile = dict(chosen) if chosen else _tile(order, kept, dtype.itemsize, fused)
    total = -(-padded // rank)  # blocks, the zero padding of q included
    per_group = group // order if group else total
    strips = -(-channels // tile["CHANNELS"])
    span = max(per_group, total - (groups - 1) * per_group) if fused else span_tokens // order
    parts = 1 if fused else max(1, -(-per_group // span))
    slabs = strips * groups
    lag = min(slabs, max(-(-AHEAD // parts), 1 if channelwise else strips))
    counters = 0 if fused else 2 * (slabs if channelwise else groups) + shape.scales[0] * shape.scales[1]
    sizes = (tokens, channels, padded, total, per_group, span, parts, slabs, groups, lag)
    transform = (qmax(bits), order, order.bit_length() - 1, rank, kept, CODES[rounds[0]], matrix_dtype(dtype))
    even = tokens % (order * tile["BLOCKS"]) == 0 and channels % tile["CHANNELS"] == 0 and kept == rank
    even = even and span % tile["BLOCKS"] == 0 and per_group % tile["BLOCKS"] == 0 and padded * order == tokens * rank
    constants = (*transform, channelwise, fused, sums, tile["CHANNELS"], tile["BLOCKS"], even)
    values = (*sizes, stride_token, scale_factor(bits, order), *constants)
    options = {name: tile[name] for name in ("num_warps", "num_stages")}
    launch = Launch(_tokens_kernel, slabs * parts * (1 if fused else 2), values, options, loose=1)
    return shape._replace(counters=counters, launch=launch)
