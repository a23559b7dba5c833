"""The launcher of the Triton kernel behind compress_tokens and quantize_weight; see ``triton_tokens_kernel.py``."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from . import workspace
from .library import failure
from .rounding import require_seed
from .scaling import carrier_dtype, padded_kept, qmax, scale_factor, summed_tokens
from .signs import normaliser
from .triton_launch import Launch
from .triton_tokens_kernel import _tokens_kernel
from .triton_transform import CODES, fusion, matrix_dtype

__all__ = ["compress_tokens"]

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
    signs: Tensor | None = None,
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
    settings = (order, rank, bits, scale == "channel", rounds, group, sums, signs is not None, carrier)
    plan = _plan(*x.shape, x.stride(0), x.dtype, *settings, None if tile is None else tuple(tile.items()))
    device = x.device
    q = torch.empty(plan.q, dtype=plan.carrier, device=device)
    scales = torch.empty(plan.scales, dtype=torch.float32, device=device)
    added = torch.empty(plan.sums, dtype=torch.float32, device=device)
    if plan.launch is None:
        return q.zero_(), scales.zero_(), added.zero_()
    scratch = workspace.zeros(plan.counters, x) if plan.counters else scales
    try:
        plan.launch(x, q, scales, added, scratch, *(x if given is None else given for given in (seed, signs)))
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
    signs: bool,
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
    constants = (*transform, channelwise, fused, sums, signs, tile["CHANNELS"], tile["BLOCKS"], even)
    values = (*sizes, stride_token, scale_factor(bits, normaliser(order, rank, signs)), *constants)
    options = {name: tile[name] for name in ("num_warps", "num_stages")} | fusion(rounds[0])
    launch = Launch(_tokens_kernel, slabs * parts * (1 if fused else 2), values, options, loose=2)
    return shape._replace(counters=counters, launch=launch)
