"""quantize_both: both quantised forms of one tensor y, and its sums over the tokens, in one read of what y is made of.

The backward of a linear layer reads g_y [L, O] twice: along O for g_x = Q(g_y H) · Q(Hᵀ w), and along L for
g_w = Q(Ĥ g_y)ᵀ · Q(Ĥ x). g_y itself is often a pointwise function of tensors that lie in memory anyhow: this kernel
evaluates it (``prologue.py``) and writes what the products read, so that g_y need never be written at all.

The results are those of ``quantize_rows`` and ``compress_tokens`` on y, where y is the prologue's float32 result
rounded to y's own dtype. A kernel that reads once wants both kinds of scales in groups, but 0 (one group) is legal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from . import compress_tokens, quantize_rows
from .library import Kernel, register, triton_bodies
from .prologue import Prologue
from .scaling import carrier_dtype, summed_tokens
from .traffic import SCALE_BYTES, Expression, Traffic, ceil_div, padded

__all__ = [
    "CAPABILITY",
    "KERNEL",
    "SPAN",
    "cpu",
    "cuda",
    "fake",
    "reference",
    "summed",
    "traffic",
    "why_not",
    "why_not_there",
]

SCHEMA = (
    "(Tensor[] inputs, str prologue, ScalarType dtype, int[] rows, str rows_rounding, str carrier, Tensor? rows_seed,"
    " int[] tokens, str tokens_rounding, Tensor? tokens_seed, bool sums, bool keep,"
    " Tensor? signs=None)"
    " -> (Tensor y, Tensor rows_q, Tensor rows_scale, Tensor tokens_q, Tensor tokens_scale, Tensor sums)"
)

Results: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]

SPAN = 256
"""Tokens of one partial sum where the tokens are not compressed."""


CAPABILITY = 90
"""Compute capability that the kernel is written for (as 90): it uses Hopper's warp-group products."""


def why_not_there(device: torch.device) -> str:
    """What keeps the CUDA kernel from a device, ``""`` when nothing does. Where there is none, none is in the way."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return ""
    major, minor = torch.cuda.get_device_capability(device)
    capable = 10 * major + minor == CAPABILITY
    return "" if capable else f"scales in groups need compute capability 9.0, which {device} with {major}.{minor} lacks"


def why_not(rows: Sequence[int], tokens: Sequence[int], dtype: torch.dtype) -> str:
    """What keeps the CUDA kernel from these settings, ``""`` when nothing does.

    Args:
        rows, tokens: as in ``reference``; empty where a form is not wanted.
        dtype: of y.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return f"the kernel that reads once keeps {str(dtype).removeprefix('torch.')} nowhere: it takes 16 bits"
    if rows and (64 % rows[0] or rows[2] not in (64, 128, 256)):
        return f"rows of order {rows[0]} in groups of {rows[2]}: the order must divide 64, the group be 64, 128 or 256"
    if tokens:
        order, rank, _, group = tokens
        kept = 64 * rank // order
        if 64 % order or kept & (kept - 1) or kept < 16 or group not in (64, 128, 256, 512):
            return (
                f"rank {rank} of {order} in groups of {group}: the order must divide 64, the rank be a power of two of"
                " at least a quarter of it, the group be 64, 128, 256 or 512"
            )
    largest = (rows[2] if rows else 64) * (tokens[3] if tokens else SPAN)
    return "" if largest <= 256 * 256 else f"a tile of {largest} values, which share scales, exceeds the shared memory"


def summed(tokens: Sequence[int]) -> int:
    """Tokens of one partial sum: those that share a scale, which one program sees."""
    if not tokens:
        return SPAN
    order, rank, _, group = tokens
    return summed_tokens(order, rank, group)


def reference(
    inputs: Sequence[Tensor],
    prologue: str,
    dtype: torch.dtype,
    rows: Sequence[int],
    rows_rounding: str,
    carrier: str,
    rows_seed: int | None,
    tokens: Sequence[int],
    tokens_rounding: str,
    tokens_seed: int | None,
    sums: bool,
    keep: bool,
    signs: int | None = None,
) -> Results:
    """The references of the two kernels on y, in float64.

    Args:
        inputs: what the prologue reads: [L, C], [L, 1], [1, C] or 0-d.
        prologue: ``Prologue.to_text``.
        dtype: of y.
        rows: (order, bits, group) of ``quantize_rows`` with scales per token; empty: that form is not wanted.
        rows_rounding, carrier, rows_seed: of it.
        tokens: (order, rank, bits, group) of ``compress_tokens`` with scales per channel; empty: not wanted.
        tokens_rounding, tokens_seed: of it.
        sums: also add up the tokens, ``summed(tokens)`` at a time.
        keep: y itself is wanted.
        signs: seed of the random signs that the form along the tokens has (``signs.py``), None for none.

    Returns:
        y [L, C]; q [L, Cp] and scale [G, L] along the rows; q [C, Lp] and scale [G, C] along the tokens; sums [S, C].
        What is not wanted is empty, [0, 0].
    """
    y = Prologue.from_text(prologue).evaluate(inputs, dtype)
    empty = torch.empty(0, 0, dtype=torch.float64)
    along_rows, along_tokens = (empty, empty), (empty, empty)
    if rows:
        order, bits, group = rows
        along_rows = quantize_rows.reference(y, rows_seed, order, bits, "token", rows_rounding, carrier, group)
    if tokens:
        order, rank, bits, group = tokens
        settings = (order, rank, bits, "channel", tokens_rounding, group)
        q, scale, _ = compress_tokens.reference(y, tokens_seed, *settings, signs=signs)
        along_tokens = q, scale
    return y if keep else empty, *along_rows, *along_tokens, _sums(y.double(), tokens) if sums else empty


def _sums(y: Tensor, tokens: Sequence[int]) -> Tensor:
    """Partial sums of y's rows [S, C]."""
    span = summed(tokens)
    parts = -(-y.shape[0] // span)
    return torch.nn.functional.pad(y, (0, 0, 0, parts * span - y.shape[0])).view(parts, span, y.shape[1]).sum(1)


def cpu(
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
) -> Results:
    """The operator in functional PyTorch; same arguments and results as ``torch.ops.hadamard.quantize_both``."""
    y = Prologue.from_text(prologue).evaluate(inputs, dtype)
    empty, rows_q, rows_scale, tokens_q, tokens_scale, _ = _unwanted(y, dtype, carrier)
    if rows:
        order, bits, group = rows
        rows_q, rows_scale = quantize_rows.cpu(y, rows_seed, order, bits, "token", rows_rounding, carrier, group)
    if tokens:
        order, rank, bits, group = tokens
        tokens_q, tokens_scale, _ = compress_tokens.cpu(
            y, tokens_seed, order, rank, bits, "channel", tokens_rounding, group, signs=signs
        )
    added = _sums(y.float(), tokens) if sums else _unwanted(y, dtype, carrier)[-1]
    return y if keep else empty, rows_q, rows_scale, tokens_q, tokens_scale, added


def _unwanted(like: Tensor, dtype: torch.dtype, carrier: str) -> Results:
    """Empty results; no two of them are one tensor, which an operator may not return twice."""
    q, scale = carrier_dtype(carrier), torch.float32
    y, rows_q, rows_scale, tokens_q, tokens_scale, sums = (
        like.new_empty((0, 0), dtype=kind) for kind in (dtype, q, scale, torch.int8, scale, scale)
    )
    return y, rows_q, rows_scale, tokens_q, tokens_scale, sums


def cuda(*arguments: Any) -> Results:
    """The operator on CUDA tensors (``triton_both.py``)."""
    results: Results = triton_bodies("both").quantize_both(*arguments)
    return results


def fake(
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
) -> Results:
    """Shapes: see ``reference``; y of ``dtype``, integers of ``carrier`` and int8, scales and sums float32.

    Raises:
        ValueError: the inputs do not fit the prologue, or neither form is wanted.
    """
    if not rows and not tokens:
        raise ValueError("quantize_both: neither form is wanted")
    parsed = Prologue.from_text(prologue)
    length, channels = parsed.shape(inputs)
    # Launchers come here too: nothing of y's size is made that is not wanted.
    like = inputs[parsed.inputs.index("tile")]
    y, rows_q, rows_scale, tokens_q, tokens_scale, added = _unwanted(like, dtype, carrier)
    if keep:
        y = like.new_empty((length, channels), dtype=dtype)
    if rows:
        order, bits, group = rows
        rows_q, rows_scale = quantize_rows.fake(like, None, order, bits, "token", rows_rounding, carrier, group)
    if tokens:
        order, rank, bits, group = tokens
        tokens_q, tokens_scale, _ = compress_tokens.fake(
            like, None, order, rank, bits, "channel", tokens_rounding, group
        )
    if sums:
        added = like.new_empty((-(-length // summed(tokens)), channels), dtype=torch.float32)
    return y, rows_q, rows_scale, tokens_q, tokens_scale, added


def traffic(
    length: Expression,
    channels: Expression,
    read: Expression,
    operations: int,
    rows: Sequence[int],
    tokens: Sequence[int],
    written: Expression = 0,
) -> Traffic:
    """Each input once, and what is written.

    Args:
        length, channels: of y.
        read: bytes of all inputs.
        operations: of the prologue, for one element.
        rows, tokens: as in ``reference``.
        written: bytes of y, where it is kept.
    """
    work = operations
    if rows:
        order, _, group = rows
        width = ceil_div(channels, max(order, 16)) * max(order, 16)
        written += length * width + SCALE_BYTES * length * (ceil_div(channels, group) if group else 1)
        work += 2 * order + 10
    if tokens:
        order, rank, _, group = tokens
        written += channels * padded(ceil_div(length, order) * rank)
        written += SCALE_BYTES * channels * (ceil_div(length, group) if group else 1)
        work += 2 * rank + 10
    return Traffic("quantize_both", read, written, length * channels * work, "one_read")


KERNEL = register(Kernel("quantize_both", SCHEMA, reference, cpu, fake, traffic), cuda)
