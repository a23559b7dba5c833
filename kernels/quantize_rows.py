"""quantize_rows: Q(x (I ⊗ H)) along the rows' own axis, the left operand of g_x = Q(g_y H) · Q(Hᵀ w).

Source: HOT (arXiv 2503.21261), section 3, "HQ": full rank, b bits, per-tensor or per-token scale, stochastic rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .library import Kernel, register, triton_bodies
from .rounding import dither, flat_index, reference_uniform, round_to_integer
from .scaling import carrier_dtype, padded_columns, qmax, scale_factor, scales
from .traffic import SCALE_BYTES, Expression, Traffic, ceil_div
from .walsh import block_transform, walsh_reference

__all__ = ["KERNEL", "cpu", "cuda", "fake", "native", "reference", "traffic"]

SCHEMA = (
    "(Tensor x, Tensor? seed, int order, int bits, str scale, str rounding, str carrier, int group=0)"
    " -> (Tensor q, Tensor scales)"
)


def reference(
    x: Tensor, seed: int | None, order: int, bits: int, scale: str, rounding: str, carrier: str, group: int = 0
) -> tuple[Tensor, Tensor]:
    """The formula in float64, element by element where it rounds.

    Args:
        x: [R, K].
        seed: of the stochastic rounding; ``rounding`` is ``"nearest"`` or ``"stochastic"`` here.
        order, bits, scale, rounding, carrier, group: as in ``hadamard_fx.scheme.Hadamard``.

    Returns:
        q [R, Kp] as float64 integers, and the scale [G, R] or [1, 1] in float64; q·scale ≈ x (I ⊗ H)/√order.
    """
    rows, columns = x.shape
    width = padded_columns(columns, order)
    extended = torch.nn.functional.pad(x.double(), (0, width - columns)).view(rows, -1, order)
    v = (extended @ walsh_reference(order).to(x.device)).view(rows, width)
    pieces = v.abs().split(group or width, 1) if scale == "token" else ()
    amax = torch.cat([piece.amax(1, keepdim=True) for piece in pieces], 1) if pieces else v.abs().amax().view(1, 1)
    amax = torch.where(amax < 1e-30, 1e-30, amax)
    t = v * (qmax(bits) / amax).repeat_interleave(group or width, 1)[:, :width]
    if rounding == "nearest":
        q = t.round()
    else:
        assert seed is not None and rounding == "stochastic"
        u = [reference_uniform(i, seed) for i in range(rows * width)]
        q = (t + torch.tensor(u, dtype=torch.float64).view(rows, width)).floor()
    return q.clamp(-qmax(bits), qmax(bits)), (amax * scale_factor(bits, order)).t()


def cpu(
    x: Tensor, seed: Tensor | None, order: int, bits: int, scale: str, rounding: str, carrier: str, group: int = 0
) -> tuple[Tensor, Tensor]:
    """The operator in functional PyTorch; same arguments and results as ``torch.ops.hadamard.quantize_rows``."""
    if x.shape[0] == 0 or x.shape[1] == 0:
        return _empty(x, order, scale, carrier, group)
    v = block_transform(x, order, max(order, 16))
    rows, width = v.shape
    offset = dither(v, flat_index(rows, width, v.device), seed, rounding)
    if group:
        groups = -(-width // group)
        amax = torch.nn.functional.pad(v, (0, groups * group - width)).view(rows, groups, group).abs().amax(2)
    else:
        amax = v.abs().amax(1, keepdim=True) if scale == "token" else v.abs().amax().view(1, 1)
    factor, dequantise = scales(amax, bits, order, rounding)
    if group:
        factor = factor.repeat_interleave(group, 1)[:, :width]
    q = round_to_integer(v * factor, offset, qmax(bits))
    return q.to(carrier_dtype(carrier)), dequantise.t()


def cuda(
    x: Tensor, seed: Tensor | None, order: int, bits: int, scale: str, rounding: str, carrier: str, group: int = 0
) -> tuple[Tensor, Tensor]:
    """The operator on CUDA tensors: ``triton_both.py`` where columns share scales in groups, else ``triton_rows.py``.

    Raises:
        KernelError: groups that the kernel does not know, or a device that it does not run on.
    """
    if group:
        both: tuple[Tensor, Tensor] = triton_bodies("both").quantize_rows(
            x, seed, order, bits, rounding, carrier, group
        )
        return both
    results: tuple[Tensor, Tensor] = triton_bodies("rows").quantize_rows(x, seed, order, bits, scale, rounding, carrier)
    return results


def native(
    x: Tensor, seed: Tensor | None, order: int, bits: int, scale: str, rounding: str, carrier: str, group: int = 0
) -> tuple[Tensor, Tensor]:
    """The operator on CPU tensors (``cpp_transform.py``)."""
    from . import cpp_transform

    return cpp_transform.quantize_rows(x, seed, order, bits, scale, rounding, carrier, group)


def fake(
    x: Tensor, seed: Tensor | None, order: int, bits: int, scale: str, rounding: str, carrier: str, group: int = 0
) -> tuple[Tensor, Tensor]:
    """Shapes: q [R, Kp], scale float32 [G, R] (``"token"``) or [1, 1] (``"tensor"``).

    Raises:
        ValueError: groups that are not whole blocks of 16 columns at least, or that have no scales per token.
    """
    if group < 0 or group % max(order, 16) or (group and scale != "token"):
        raise ValueError(f"group must be 0, or a multiple of {max(order, 16)} with scales per token, got {group}")
    rows, columns = x.shape
    q = x.new_empty((rows, padded_columns(columns, order)), dtype=carrier_dtype(carrier))
    groups = -(-columns // group) if group else 1
    return q, x.new_empty((groups, rows if scale == "token" else 1), dtype=torch.float32)


def _empty(x: Tensor, order: int, scale: str, carrier: str, group: int) -> tuple[Tensor, Tensor]:
    """Zeros of the right shapes: nothing to quantise."""
    q, scales_ = fake(x, None, order, 2, scale, "nearest", carrier, group)
    return q.zero_(), scales_.zero_()


def traffic(
    rows: Expression, k: Expression, order: int, itemsize: int, scale: str = "token", group: int = 0
) -> Traffic:
    """One read and one write; a scale per tensor must see everything before it rounds anything: a second read.

    Args:
        rows, k: of x.
        order: of the transform.
        itemsize: bytes of one element of x.
        scale: ``"token"`` or ``"tensor"``.
        group: columns that share a scale, 0 for all.
    """
    groups = ceil_div(k, group) if group else 1
    reads = 1 if scale == "token" else 2
    width = ceil_div(k, max(order, 16)) * max(order, 16)
    operations = rows * width * (2 * order + 10)
    return Traffic(
        "quantize_rows", reads * rows * k * itemsize, rows * width + SCALE_BYTES * groups * rows, operations, "vector"
    )


KERNEL = register(Kernel("quantize_rows", SCHEMA, reference, cpu, fake, traffic), cuda, native)
