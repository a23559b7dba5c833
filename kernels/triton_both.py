"""Launching quantize_both: which kernel is generated for a call, and with which numbers it is launched."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hadamard_fx import compat
from hadamard_fx.errors import KernelError

from . import quantize_both as operator
from .both_source import Form, sliced, source
from .generated import module
from .library import failure
from .prologue import Prologue
from .quantized_mm_configs import device as describe
from .rounding import require_seed
from .scaling import padded_columns, padded_kept, qmax, scale_factor
from .signs import normaliser
from .triton_launch import Launch
from .triton_rows import CODES

__all__ = ["compress_tokens", "quantize_both", "quantize_rows", "serves"]

_DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}


def quantize_both(
    inputs: Sequence[Tensor],
    prologue: str,
    dtype: torch.dtype,
    rows: Sequence[int],
    rows_rounding: str,
    carrier: str,
    rows_seed: Tensor | None,
    tokens: Sequence[int],
    tokens_rounding: str,
    tokens_seed: Tensor | None,
    sums: bool,
    keep: bool,
    signs: Tensor | None = None,
) -> operator.Results:
    """The operator on CUDA tensors of compute capability 9.0.

    Raises:
        KernelError: settings that the kernel does not know, another device, or it does not compile or launch.
    """
    if rows:
        require_seed(rows_seed, rows_rounding)
    if tokens:
        require_seed(tokens_seed, tokens_rounding)
    parsed = _parse(prologue)
    inputs = [_unit_stride(x, kind) for x, kind in zip(inputs, parsed.inputs, strict=True)]
    results = operator.fake(
        inputs, prologue, dtype, rows, rows_rounding, carrier, None, tokens, tokens_rounding, None, sums, keep
    )
    first = inputs[parsed.inputs.index("tile")]
    length, channels = first.shape
    if length == 0 or channels == 0:
        for result in results:
            result.zero_()
        return results
    strides = tuple(x.stride(0) if x.dim() else 0 for x in inputs)
    dtypes = tuple(x.dtype for x in inputs)
    seeds = (rows_seed is not None, tokens_seed is not None, signs is not None)
    try:
        launch = _plan(
            length, channels, strides, dtypes, first.device.index or 0, prologue, dtype,
            tuple(rows), rows_rounding, carrier, tuple(tokens), tokens_rounding, seeds, sums, keep,
        )  # fmt: skip
        words = [first if seed is None else seed for seed in (rows_seed, tokens_seed, signs)]
        launch(*inputs, *results, *words)
    except KernelError:
        raise
    except Exception as error:
        shape = {"L": length, "C": channels, "rows": list(rows), "tokens": list(tokens), "dtype": dtype}
        raise failure("quantize_both", error, **shape) from error
    return results


_IDENTITY = Prologue.identity().to_text()


def serves(x: Tensor, rows: tuple[int, ...], tokens: tuple[int, ...]) -> bool:
    """Whether the kernel runs on the device of ``x`` and knows these settings."""
    capable = x.device.type == "cuda" and describe(x.device.index or 0)[1] == operator.CAPABILITY
    return capable and not operator.why_not(rows, tokens, x.dtype)


def quantize_rows(
    x: Tensor, seed: Tensor | None, order: int, bits: int, rounding: str, carrier: str, group: int
) -> tuple[Tensor, Tensor]:
    """The form along the rows alone, as ``quantize_rows`` returns it."""
    rows = (order, bits, group)
    results = quantize_both(
        [x], _IDENTITY, x.dtype, rows, rounding, carrier, seed, (), "nearest", None, sums=False, keep=False
    )
    return results[1:3]


def compress_tokens(
    x: Tensor,
    seed: Tensor | None,
    order: int,
    rank: int,
    bits: int,
    group: int,
    rounding: str,
    sums: bool,
    signs: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The form along the tokens alone, as ``compress_tokens`` returns it."""
    tokens = (order, rank, bits, group)
    *_, q, scales, added = quantize_both(
        [x], _IDENTITY, x.dtype, (), "nearest", "int8", None, tokens, rounding, seed, sums=sums, keep=False, signs=signs
    )
    return q, scales, added if sums else added.new_empty((0, x.shape[1]))


_parse = functools.lru_cache(maxsize=1024)(Prologue.from_text)


def _unit_stride(x: Tensor, kind: str) -> Tensor:
    """Neighbouring channels lie side by side."""
    return x.contiguous() if kind in ("tile", "column") and x.stride(1) != 1 else x


class _Tile(NamedTuple):
    """Sizes of a tile in units of 64, and how many programs of four warps a multiprocessor holds."""

    strips: int
    spans: int
    programs: int
    registers: int
    prefetch: bool


SHARED_KIB = 227
"""Of a multiprocessor, for all its programs; each takes one more."""


def _tile(rows: tuple[int, ...], tokens: tuple[int, ...], sums: bool, signs: bool, tiles_read: int) -> _Tile:
    """The tile is what shares scales. Measured on an H200 (benchmarks/results): many small programs win.

    The buffers take 8 KiB for each 64 by 64 values, as does the matrix of the rows; registers hold the forms of the
    same.
    """
    strips = rows[2] // 64 if rows else 1
    spans = tokens[3] // 64 if tokens else operator.SPAN // 64 if sums else 2
    shared = 8 * strips * spans + (8 if rows else 0) + 1
    if (tokens or sums) and not sliced(rows, tokens):
        shared += 8 * tokens[1] // tokens[0] if tokens else 4
    shared += 2 if sums and signs else 0
    programs = max(1, min(SHARED_KIB // shared, 4 if rows else 5))
    registers = {1: 255, 2: 255, 3: 168, 4: 128, 5: 96}[programs]
    return _Tile(strips, spans, programs, registers, prefetch=tiles_read == 1 and programs <= 3)


@functools.lru_cache(maxsize=4096)
def _plan(
    length: int,
    channels: int,
    strides: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
    ordinal: int,
    prologue: str,
    dtype: torch.dtype,
    rows: tuple[int, ...],
    rows_rounding: str,
    carrier: str,
    tokens: tuple[int, ...],
    tokens_rounding: str,
    seeds: tuple[bool, bool, bool],
    sums: bool,
    keep: bool,
) -> Launch:
    """A launch is for these dtypes alone: those of the inputs (``dtypes``), of the integers (``carrier``), and of the
    seeds that are there (``seeds``)."""
    del carrier
    reason = operator.why_not(rows, tokens, dtype)
    processors, capability = describe(ordinal)
    if capability != operator.CAPABILITY:
        reason = f"a device of compute capability {capability / 10}, not 9.0"
    if reason:
        raise KernelError("quantize_both", f"L={length} C={channels} rows={rows} tokens={tokens}", reason)
    kinds = _parse(prologue).inputs
    tile = _tile(rows, tokens, sums, seeds[2], kinds.count("tile"))
    rows_padded = padded_columns(channels, rows[0]) if rows else channels
    tokens_padded = padded_kept(length, *tokens[:2]) if tokens else 16
    width, span = 64 * tile.strips, 64 * tile.spans
    chunks, slabs = -(-channels // width), -(-length // span)
    even = channels % width == 0 and length % span == 0
    form = Form(
        prologue=prologue,
        booleans=tuple(kind is torch.bool for kind in dtypes),
        dtype=_DTYPES[dtype],
        rows=(rows[0], qmax(rows[1]), CODES[rows_rounding]) if rows else (),
        tokens=(*tokens[:2], qmax(tokens[2]), CODES[tokens_rounding]) if tokens else (),
        sums=sums,
        keep=keep,
        signs=seeds[2],
        strips=tile.strips,
        spans=tile.spans,
        even=even,
        prefetch=tile.prefetch,
    )
    kernel = module(compat.cache_dir(), "quantize_both", source(form)).quantize_both
    scales = (
        scale_factor(rows[1], rows[0]) if rows else 1.0,
        scale_factor(tokens[2], normaliser(tokens[0], tokens[1], seeds[2])) if tokens else 1.0,
    )
    values = (length, channels, rows_padded, tokens_padded, chunks, chunks * slabs, *strides, *scales)
    options = {"num_warps": 4, "maxnreg": tile.registers, "enable_fp_fusion": True}
    return Launch(kernel, min(chunks * slabs, processors * tile.programs), values, options, loose=3)
