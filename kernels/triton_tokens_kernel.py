"""The Triton kernel behind compress_tokens and quantize_weight. Needs no torch.

A tile [tokens, CHANNELS] is transposed into the left operand of a product with (I ⊗ Ĥ)ᵀ, which yields [CHANNELS, kept]
as the result is stored: K-major.

A scale is known once all its tokens were seen, so they are read twice. A short group of tokens is passed over twice by
one program. Otherwise one launch holds programs of two kinds, which take turns slab by slab, a slab being CHANNELS
channels of a group: the first kind finds the largest magnitude, the second, ``lag`` slabs later, quantises what it
then finds in the L2 cache. A program of the second kind waits for the last of the first kind of its slab; these have
lower numbers, and programs are started in the order of their numbers, so that they never wait for one that waits.
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
    seed_word,
    token_matrix,
    token_signs,
    weyl,
)


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
    signs_word,
    ORDER: tl.constexpr,
    SIGNS: tl.constexpr,
    EVEN: tl.constexpr,
):
    """v [CHANNELS, BLOCKS·KEPT] of the tile whose first block of tokens is ``block``, and the tile before its tokens'
    signs; tokens from ``end`` on are 0."""
    token = block * ORDER + tl.arange(0, matrix.shape[0])
    pointer = x + token[:, None].to(tl.int64) * stride_token + channel[None, :]
    if EVEN:
        tile = tl.load(pointer)
    else:
        inside = (token < tokens) & (token < end * ORDER)
        tile = tl.load(pointer, mask=inside[:, None] & (channel < channels)[None, :], other=0.0)
    signed = tile
    if SIGNS:
        signed = (tile.to(tl.float32) * token_signs(token, signs_word)[:, None]).to(tile.dtype)
    return in_order(exact_dot(tl.trans(signed), matrix)), tile


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
    do_not_specialize_on_alignment=["seed", "signs"],
)
def _tokens_kernel(
    x,
    q,
    scale,
    sums,
    scratch,
    seed,
    signs,
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
    SIGNS: tl.constexpr,
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
    signs_word = seed_word(signs, 1 if SIGNS else 0)
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
        plain = tl.zeros((BLOCKS * ORDER, CHANNELS), tl.float32)
        for block in range(start, end, BLOCKS):
            v, tile = _transformed(
                x, channel, block, end, tokens, channels, stride_token, matrix, signs_word, ORDER, SIGNS, EVEN
            )
            largest = larger_magnitude(largest, v)
            if SUMS and SIGNS:
                plain += tile.to(tl.float32)
            elif SUMS:
                added += v
        bits = tl.max(magnitude_bits(largest), 1)
        if SUMS:
            if SIGNS:
                summed = tl.sum(plain, 0)
            else:  # the lowest sequency of a block is the sum of its tokens
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
            v, _ = _transformed(
                x, channel, block, end, tokens, channels, stride_token, matrix, signs_word, ORDER, SIGNS, EVEN
            )
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
