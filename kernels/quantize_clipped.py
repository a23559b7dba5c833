"""quantize_clipped: Q(clamp(x (I ⊗ H), ±α max|·|)) with one scale for all, the operands of HDQT's three products.

Order 1 is no transform: x̂ and ŵ of the forward. The gradients' operands are transformed along the contracted axis, the
last one here; x̂ and ŵ come as the integers of the forward with their scale. H is Sylvester's matrix: the order of its
rows does not matter, as both operands of a product carry the same one.

Source: HDQT (arXiv 2310.03675), sections on the forward and the backward.

The transform adds and subtracts pairs, log2(order) times: the same float32 sums on every device, exact for integers up
to 2^24 / order. Whether the range starts at 0 is decided by a tensor, on the device: no branch stands in the graph.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .library import Kernel, register
from .rounding import dither, flat_index, reference_uniform, round_to_integer
from .scaling import SMALLEST, qmax
from .traffic import SCALE_BYTES, Expression, Traffic

__all__ = ["KERNEL", "carrier", "cpu", "cuda", "fake", "largest_order", "reference", "sylvester_transform", "traffic"]

SCHEMA = (
    "(Tensor x, Tensor? scale, Tensor? seed, int order, int bits, float alpha, str rounding, bool unsigned)"
    " -> (Tensor q, Tensor scales)"
)


def largest_order(extent: int) -> int:
    """The largest power of two that divides ``extent``: 256 for 768, 1 for 405. An empty axis has order 1."""
    return max(extent & -extent, 1)


def carrier(bits: int, unsigned: bool) -> torch.dtype:
    """The type that holds the integers: int8, unless they may reach 255."""
    return torch.int16 if unsigned and bits == 8 else torch.int8


def reference(
    x: Tensor,
    scale: float | None,
    seed: int | None,
    order: int,
    bits: int,
    alpha: float,
    rounding: str,
    unsigned: bool,
) -> tuple[Tensor, Tensor]:
    """The formula in float64, element by element where it rounds.

    Args:
        x: [R, K], numbers or integers of an earlier call.
        scale: of the integers, None for 1.
        seed: of the stochastic rounding; ``rounding`` is ``"nearest"`` or ``"stochastic"`` here.
        order: of the transform along K, 0 for the largest power of two that divides K; blocks are zero-padded.
        bits, alpha: as in ``hadamard_fx.saturating``.
        unsigned: take the range 0..2^bits − 1 where no element is negative.

    Returns:
        q [R, Kp] as float64 integers and the scale [1, 1] in float64; q·scale ≈ (x·scale) (I ⊗ H)/√order.
    """
    rows, columns = x.shape
    order = order or largest_order(columns)
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while matrix.shape[0] < order:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)], 0)
    width = -(-columns // order) * order
    extended = torch.nn.functional.pad(x.double(), (0, width - columns))
    v = (extended.view(rows, -1, order) @ matrix).view(rows, width)
    starts_at_zero = unsigned and bool((v >= 0).all())
    top = 2**bits - 1 if starts_at_zero else qmax(bits)
    end = alpha * max(float(v.abs().max()), SMALLEST)
    t = v.clamp(0 if starts_at_zero else -end, end) / (end / top)
    if rounding == "nearest":
        q = t.round()
    else:
        assert seed is not None and rounding == "stochastic"
        u = [reference_uniform(i, seed) for i in range(rows * width)]
        q = (t + torch.tensor(u, dtype=torch.float64).view(rows, width)).floor()
    factor = (1.0 if scale is None else scale) / math.sqrt(order)
    return q.clamp(-top, top), torch.full((1, 1), end / top * factor, dtype=torch.float64)


def cpu(
    x: Tensor,
    scale: Tensor | None,
    seed: Tensor | None,
    order: int,
    bits: int,
    alpha: float,
    rounding: str,
    unsigned: bool,
) -> tuple[Tensor, Tensor]:
    """The operator in functional PyTorch, on every device; arguments and results as ``fake`` says.

    Traceable with symbolic sizes where ``order`` is not 0.
    """
    if x.numel() == 0:
        q, empty = fake(x, scale, seed, order, bits, alpha, rounding, unsigned)
        return q.zero_(), empty.zero_()
    order = order or largest_order(x.shape[1])
    v = sylvester_transform(x, order)
    rows, width = v.shape
    offset = dither(v, flat_index(rows, width, v.device), seed, rounding)
    amax = v.abs().amax().view(1, 1)
    amax = torch.where(amax < SMALLEST, SMALLEST, amax)
    top = torch.full_like(amax, qmax(bits))
    if unsigned:
        top = torch.where(v.amin() >= 0, float(2**bits - 1), top)
    scaled = v * (top / (amax * alpha))
    scaled = torch.maximum(torch.minimum(scaled, top), -top)
    q = round_to_integer(scaled, offset, 2**bits)
    q = torch.maximum(torch.minimum(q, top), -top)  # a draw next to 1 may round the end of the range up
    step = amax * (alpha / math.sqrt(order)) / top
    return q.to(carrier(bits, unsigned)), step if scale is None else step * scale


def cuda(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The operator on CUDA tensors: the functional form, whose orders have no limit."""
    q, scales = cpu(*arguments)
    return q.contiguous(), scales


def sylvester_transform(x: Tensor, order: int) -> Tensor:
    """x (I ⊗ H), unscaled, in float32: [R, K] with K zero-padded to a multiple of ``order``."""
    rows, columns = x.shape
    blocks = -(-columns // order)
    v = x.to(torch.float32)
    if not (isinstance(columns, int) and columns % order == 0):
        v = torch.nn.functional.pad(v, (0, blocks * order - columns))
    half = 1
    while half < order:
        pairs = v.reshape(-1, 2, half)
        left, right = pairs[:, 0], pairs[:, 1]
        v = torch.stack((left + right, left - right), 1)
        half *= 2
    return v.reshape(rows, blocks * order)


def fake(
    x: Tensor,
    scale: Tensor | None,
    seed: Tensor | None,
    order: int,
    bits: int,
    alpha: float,
    rounding: str,
    unsigned: bool,
) -> tuple[Tensor, Tensor]:
    """Shapes: q int8 (int16 for 8 bits without a sign) [R, Kp], Kp = K padded to whole blocks; scale float32 [1, 1].

    Raises:
        ValueError: a stochastic rounding without a seed.
    """
    if seed is None and rounding == "stochastic":
        raise ValueError("stochastic rounding needs a seed: a 0-d int64 tensor on the device of the input")
    rows, columns = x.shape
    width = -(-columns // order) * order if order > 1 else columns
    return x.new_empty((rows, width), dtype=carrier(bits, unsigned)), x.new_empty((1, 1), dtype=torch.float32)


def traffic(rows: Expression, k: Expression, order: int, itemsize: int) -> Traffic:
    """Two reads, as one scale serves all; one write. Where the passes of the transform do not fit one kernel they are
    more, which a price that only compares schemes leaves out.

    Args:
        rows, k: of x.
        order: of the transform.
        itemsize: bytes of one element of x.
    """
    operations = rows * k * (max(order, 1).bit_length() + 10)
    return Traffic("quantize_clipped", 2 * rows * k * itemsize, rows * k + SCALE_BYTES, operations, "vector")


KERNEL = register(Kernel("quantize_clipped", SCHEMA, reference, cpu, fake, traffic), cuda)
