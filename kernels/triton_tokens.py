"""The Triton kernel behind compress_tokens and quantize_weight, and its launcher.

A program owns CHANNELS channels of some blocks of tokens. Each tile [tokens, CHANNELS] is transposed into the left
operand of a product with (I ⊗ Ĥ)ᵀ, which yields [CHANNELS, kept] as the result is stored: K-major. A scale per group of
tokens is found by passing over the group twice, the second time out of the L2 cache. One scale for all tokens, or for
all channels, takes two launches, the first with an atomic maximum on the bits of the magnitudes.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .library import failure
from .scaling import carrier_dtype, padded_kept, qmax, scale_factor
from .triton_launch import Launch
from .triton_rows import AMAX, CODES, FUSED, QUANTISE
from .triton_transform import exact_dot, floored, magnitude_bits, matrix_dtype, rounded, seed_word, token_matrix, weyl

__all__ = ["compress_tokens"]

_FUSED, _AMAX, _QUANTISE = tl.constexpr(FUSED), tl.constexpr(AMAX), tl.constexpr(QUANTISE)


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
):
    """v [CHANNELS, BLOCKS·KEPT] of the tile whose first block of tokens is ``block``; tokens from ``end`` on are 0."""
    token = block * ORDER + tl.arange(0, matrix.shape[0])
    pointer = x + token[:, None].to(tl.int64) * stride_token + channel[None, :]
    inside = (token < tokens) & (token < end * ORDER)
    tile = tl.load(pointer, mask=inside[:, None] & (channel < channels)[None, :], other=0.0)
    return exact_dot(tl.trans(tile), matrix)


@triton.jit
def _columns(block, end, padded, BLOCKS: tl.constexpr, KEPT: tl.constexpr, RANK: tl.constexpr):
    """Columns of q [1, BLOCKS·KEPT] that a tile's results go to, and which of them exist."""
    kept = tl.arange(0, BLOCKS * KEPT)[None, :]
    column = (block + kept // KEPT) * RANK + kept % KEPT
    return column, (kept % KEPT < RANK) & (block + kept // KEPT < end) & (column < padded)


@triton.jit
def _tokens_kernel(
    x,
    q,
    scale,
    amax_bits,
    seed,
    tokens,
    channels,
    padded,
    total,
    per_group,
    span,
    parts,
    groups,
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
    PHASE: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """``total`` blocks in groups of ``per_group``; a program takes ``span`` blocks, one of ``parts`` of its group."""
    matrix = token_matrix(BLOCKS, ORDER, LOG_ORDER, RANK, KEPT, MATRIX)
    strips = tl.cdiv(channels, CHANNELS)  # neighbours in memory are neighbours in time
    channel = (tl.program_id(0) % strips) * CHANNELS + tl.arange(0, CHANNELS)
    group = tl.program_id(0) // strips // parts
    part = tl.program_id(0) // strips % parts
    limit = tl.where(group == groups - 1, total, (group + 1) * per_group)
    start = group * per_group + part * span
    end = tl.where(part == parts - 1, limit, tl.minimum(start + span, limit))
    extent = group * channels + channel if CHANNELWISE else group + channel * 0

    if PHASE == _QUANTISE:
        bits = tl.load(amax_bits + extent, mask=channel < channels, other=0)
    else:
        largest = tl.zeros((CHANNELS, BLOCKS * KEPT), tl.int32)
        for block in range(start, end, BLOCKS):
            v = _transformed(x, channel, block, end, tokens, channels, stride_token, matrix, ORDER)
            largest = tl.maximum(largest, magnitude_bits(v))
        bits = tl.max(largest, 1)

    if PHASE == _AMAX:
        if CHANNELWISE:
            tl.atomic_max(amax_bits + extent, bits, mask=channel < channels, sem="relaxed")
        else:
            tl.atomic_max(amax_bits + group, tl.max(bits, 0), sem="relaxed")
    else:
        amax = floored(bits)
        if part == 0:
            tl.store(scale + extent, amax * scale_per_amax, mask=channel < channels)
        factor = tl.div_rn(tl.full((CHANNELS,), QMAX, tl.float32), amax)[:, None]
        counter = weyl(channel.to(tl.uint32) * padded.to(tl.uint32))[:, None] + seed_word(seed, ROUNDING)
        target = q + channel[:, None].to(tl.int64) * padded
        alive = (channel < channels)[:, None]
        for block in range(start, end, BLOCKS):
            v = _transformed(x, channel, block, end, tokens, channels, stride_token, matrix, ORDER)
            column, inside = _columns(block, end, padded, BLOCKS, KEPT, RANK)
            integers = rounded(v, factor, counter + weyl(column), QMAX, ROUNDING, q.dtype.element_ty)
            tl.store(target + column, integers, mask=alive & inside)


_launch = Launch(_tokens_kernel)

SPAN_TOKENS = 1024
"""Most tokens of one program where a group is split among several, and of one group whose scale takes one launch."""
PROGRAMS = 1024
"""Programs that fill the device: a group is split further while there are fewer."""


@functools.lru_cache(maxsize=4096)
def _tile(order: int, kept: int, itemsize: int, fused: bool) -> dict[str, Any]:
    """Tile sizes; see ``_tokens_kernel``. Measured on an H200 (benchmarks/results).

    A float32 tile takes the room of two, and its three parts the registers: it is half as long, on twice the warps.
    """
    wide = itemsize > 2
    blocks = max(1, min((128 if fused and not wide else 64) // order, 64 // kept))
    while blocks * kept < 16 or blocks * order < 16:  # the smallest right operand of a product
        blocks *= 2
    stages = 2 if wide or blocks * order > 128 else 4
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
    carrier: str = "int8",
    tile: dict[str, Any] | None = None,
    kernel: str = "compress_tokens",
) -> tuple[Tensor, Tensor]:
    """The operator on CUDA tensors; ``tile`` overrides the tile sizes (benchmarks), ``kernel`` is the name in errors.

    Raises:
        KernelError: the kernel does not compile or launch.
    """
    tokens, channels = x.shape
    padded = padded_kept(tokens, order, rank)
    groups = -(-tokens // group) if group else 1
    channelwise = scale == "channel"
    q = torch.empty((channels, padded), dtype=carrier_dtype(carrier), device=x.device)
    scales = torch.empty((groups, channels if channelwise else 1), dtype=torch.float32, device=x.device)
    if tokens == 0 or channels == 0:
        return q.zero_(), scales.zero_()
    if x.stride(1) != 1:
        x = x.contiguous()  # cheaper than to read it one element at a time, twice
    kept = triton.next_power_of_2(rank)
    fused = channelwise and (group != 0 or tokens <= SPAN_TOKENS)
    tile = tile or _tile(order, kept, x.element_size(), fused)
    total = -(-padded // rank)  # blocks, the zero padding of q included
    per_group = group // order if group else total
    strips = -(-channels // tile["CHANNELS"])
    span, parts = max(per_group, total - (groups - 1) * per_group), 1
    if not fused:
        wanted = max(tile["BLOCKS"], total * strips // PROGRAMS)
        span = triton.next_power_of_2(min(wanted, max(tile["BLOCKS"], SPAN_TOKENS // order)))
        parts = max(1, -(-per_group // span))
    amax_bits = scales if fused else torch.zeros_like(scales, dtype=torch.int32)
    tensors = (x, q, scales, amax_bits, x if seed is None else seed)
    sizes = (tokens, channels, padded, total, per_group, span, parts, groups)
    numbers = (*sizes, x.stride(0), scale_factor(bits, order))
    transform = (qmax(bits), order, order.bit_length() - 1, rank, kept, CODES[rounding], matrix_dtype(x.dtype))
    try:
        for phase in (FUSED,) if fused else (AMAX, QUANTISE):
            constants = (*transform, channelwise, phase, tile["CHANNELS"], tile["BLOCKS"])
            options = {name: tile[name] for name in ("num_warps", "num_stages")}
            _launch(strips * groups * parts, tensors, numbers, constants, **options)
    except Exception as error:
        shape = {"L": tokens, "C": channels, "order": order, "rank": rank, "dtype": x.dtype, "tile": tile}
        raise failure(kernel, error, **shape) from error
    return q, scales
