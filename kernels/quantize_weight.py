"""quantize_weight: Q(Hᵀ w) along the contracted rows, transposed, the right operand of g_x = Q(g_y H) · Q(Hᵀ w).

For w [O, I] the product contracts over O, the rows; the result is stored K-major, [I, Op], as the 8-bit products want.
It is the token transform at full rank, rounded to nearest. Source: HOT (arXiv 2503.21261), section 3, "HQ".
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import compress_tokens
from .compress_tokens import compress
from .library import Kernel, register, triton_bodies
from .scaling import carrier_dtype, padded_columns
from .traffic import SCALE_BYTES, Expression, Traffic, ceil_div

__all__ = ["KERNEL", "cpu", "cuda", "fake", "native", "reference", "traffic"]

SCHEMA = "(Tensor w, int order, int bits, str scale, str carrier) -> (Tensor q, Tensor scales)"


def reference(w: Tensor, order: int, bits: int, scale: str, carrier: str) -> tuple[Tensor, Tensor]:
    """The formula in float64.

    Args:
        w: [K, N], rows = contracted axis.
        order, bits, scale, carrier: as in ``hadamard_fx.scheme.Hadamard``; ``"token"`` is one scale per column of w.

    Returns:
        q [N, Kp] as float64 integers, and the scale [1, N] or [1, 1] in float64.
    """
    extent = "channel" if scale == "token" else "tensor"
    return compress_tokens.reference(w, None, order, order, bits, extent, "nearest", 0)[:2]


def cpu(w: Tensor, order: int, bits: int, scale: str, carrier: str) -> tuple[Tensor, Tensor]:
    """The operator in functional PyTorch; same arguments and results as ``torch.ops.hadamard.quantize_weight``."""
    if w.shape[0] == 0 or w.shape[1] == 0:
        q, empty = fake(w, order, bits, scale, carrier)
        return q.zero_(), empty.zero_()
    return compress(w, None, order, order, bits, scale == "token", "nearest", 0, carrier)


def cuda(w: Tensor, order: int, bits: int, scale: str, carrier: str) -> tuple[Tensor, Tensor]:
    """The operator on CUDA tensors (``triton_tokens.py``)."""
    extent = "channel" if scale == "token" else "tensor"
    q, scales, _ = triton_bodies("tokens").compress_tokens(
        w, None, order, order, bits, extent, "nearest", 0, carrier=carrier, kernel="quantize_weight"
    )
    return q, scales


def native(w: Tensor, order: int, bits: int, scale: str, carrier: str) -> tuple[Tensor, Tensor]:
    """The operator on CPU tensors (``cpp_transform.py``)."""
    from . import cpp_transform

    return cpp_transform.quantize_weight(w, order, bits, scale, carrier)


def fake(w: Tensor, order: int, bits: int, scale: str, carrier: str) -> tuple[Tensor, Tensor]:
    """Shapes: q [N, Kp], scale float32 [1, N] (``"token"``) or [1, 1] (``"tensor"``)."""
    k, n = w.shape
    q = w.new_empty((n, padded_columns(k, order)), dtype=carrier_dtype(carrier))
    return q, w.new_empty((1, n if scale == "token" else 1), dtype=torch.float32)


def traffic(k: Expression, n: Expression, order: int, itemsize: int) -> Traffic:
    """Two reads, the first for the scales of whole columns, and one write.

    Args:
        k, n: rows and columns of w.
        order: of the transform.
        itemsize: bytes of one element of w.
    """
    width = ceil_div(k, max(order, 16)) * max(order, 16)
    return Traffic(
        "quantize_weight", 2 * k * n * itemsize, n * width + SCALE_BYTES * n, n * width * (2 * order + 10), "vector"
    )


KERNEL = register(Kernel("quantize_weight", SCHEMA, reference, cpu, fake, traffic), cuda, native)
