"""saturating_mm: a product of integers whose accumulators saturate, with the scales applied at the end.

    out[m, n] = scale_a · scale_b · Σ_tiles clamp(Σ_{k in tile} a[m, k] · b[n, k], ±N) + bias[n],  N = 2^(A−1) − 1

Both operands are K-major, ``a`` [M, K] and ``b`` [N, K]. HDQT's forward has tiles of 32 columns and a wide sum over the
tiles; its gradients have one tile of all columns (arXiv 2310.03675). A sum is exact before it is clamped, so integers
are the same on every device, bit for bit. The exact sums, clamped or not, must fit an int32.

With a name for a counter the product also counts the sums that saturated (``saturation.py``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hadamard_fx.errors import KernelError
from hadamard_fx.saturating import accumulator_limit

from . import saturation
from .integer_mm import integer_mm
from .library import Kernel, register, triton_bodies
from .traffic import SCALE_BYTES, Expression, Traffic

__all__ = ["KERNEL", "NAME", "check", "cpu", "cuda", "fake", "native", "partial_sums", "reference", "traffic"]

NAME = "saturating_mm"
SCHEMA = (
    "(Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, int tile, int accumulator_bits, ScalarType dtype,"
    ' Tensor? bias=None, str counter="") -> Tensor'
)
_EXACT = (torch.int8, torch.int16)
_FLOAT32_COLUMNS = 512
"""Columns whose products of 255 and 127 sum up exactly in float32: 2^9 · 255 · 127 < 2^24."""


def partial_sums(a: Tensor, b: Tensor, tile: int) -> Tensor:
    """The exact sums of each tile, int64 [T, M, N]; ``tile`` 0 is one tile of all columns."""
    left, right = a.to(torch.int64), b.to(torch.int64)
    step = tile or max(a.shape[1], 1)
    return torch.stack([x @ y.T for x, y in zip(left.split(step, 1), right.split(step, 1), strict=True)])


def reference(
    a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, tile: int, accumulator_bits: int, bias: Tensor | None = None
) -> tuple[Tensor, int]:
    """The formula of the module's docstring: sums in int64, the rest in float64.

    Args:
        a, b: integers [M, K] and [N, K].
        scale_a, scale_b: [1, 1].
        tile: columns summed up before the clamp, 0 for all.
        accumulator_bits: A.
        bias: [N].

    Returns:
        float64 [M, N], and how many sums saturated.
    """
    limit = accumulator_limit(accumulator_bits)
    exact = partial_sums(a, b, tile)
    out = exact.clamp(-limit, limit).sum(0).double() * scale_a.double() * scale_b.double()
    return out if bias is None else out + bias.double(), int((exact.abs() > limit).sum())


def cpu(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    tile: int,
    accumulator_bits: int,
    dtype: torch.dtype,
    bias: Tensor | None = None,
    counter: str = "",
) -> Tensor:
    """The operator in functional PyTorch, traceable with symbolic sizes; it counts nothing.

    Returns:
        [M, N] of ``dtype``.
    """
    limit = accumulator_limit(accumulator_bits)
    (m, k), n = a.shape, b.shape[0]
    if tile:
        tiles = -(-k // tile)
        left, right = (torch.nn.functional.pad(t.to(torch.float32), (0, tiles * tile - k)) for t in (a, b))
        left, right = left.reshape(m, tiles, tile).permute(1, 0, 2), right.reshape(n, tiles, tile).permute(1, 2, 0)
        total = torch.bmm(left, right).to(torch.int32).clamp(-limit, limit).sum(0, dtype=torch.int32)
    else:
        total = (a.to(torch.float64) @ b.to(torch.float64).t()).to(torch.int32).clamp(-limit, limit)
    return _finished(total, scale_a, scale_b, bias).to(dtype)


def native(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    tile: int,
    accumulator_bits: int,
    dtype: torch.dtype,
    bias: Tensor | None = None,
    counter: str = "",
) -> Tensor:
    """The operator on CPU tensors: a tile after the other, so that no more than two sums are held.

    Raises:
        KernelError: operands that do not fit each other.
    """
    check(a, b, scale_a, scale_b)
    limit = accumulator_limit(accumulator_bits)
    (m, k), n = a.shape, b.shape[0]
    total = torch.zeros((m, n), dtype=torch.int32)
    for start in range(0, k, tile or k or 1):
        exact = _exact(a[:, start : start + (tile or k)], b[:, start : start + (tile or k)])
        clamped = exact.clamp(-limit, limit)
        if counter:
            found = torch.stack([(exact != clamped).sum(), torch.tensor(m * n)])
            saturation.counter(counter, a.device).add_(found)
        total += clamped
    return _finished(total, scale_a, scale_b, bias).to(dtype)


def _exact(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ, exact: int32 [M, N]."""
    if a.shape[1] <= _FLOAT32_COLUMNS:
        return (a.to(torch.float32) @ b.to(torch.float32).t()).to(torch.int32)
    if a.dtype == b.dtype == torch.int8:
        return integer_mm(a.contiguous(), b.contiguous())
    return (a.to(torch.float64) @ b.to(torch.float64).t()).to(torch.int32)


def _finished(total: Tensor, scale_a: Tensor, scale_b: Tensor, bias: Tensor | None) -> Tensor:
    product = total.to(torch.float32) * scale_a * scale_b
    return product if bias is None else product + bias.to(torch.float32)


def check(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor) -> None:
    """Refuse operands that would give a plausible but wrong result."""
    if a.dtype not in _EXACT or b.dtype not in _EXACT:
        cause = f"the operands must be int8 or int16, not {a.dtype} and {b.dtype}"
    elif a.shape[1] != b.shape[1]:
        cause = f"the operands contract {a.shape[1]} and {b.shape[1]} columns; both must be K-major, [M, K] and [N, K]"
    elif scale_a.numel() != 1 or scale_b.numel() != 1:
        cause = f"one scale per operand, not {[*scale_a.shape]} and {[*scale_b.shape]}"
    else:
        return
    raise KernelError(NAME, f"M={a.shape[0]} N={b.shape[0]} K={a.shape[1]}", cause)


def fake(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    tile: int,
    accumulator_bits: int,
    dtype: torch.dtype,
    bias: Tensor | None = None,
    counter: str = "",
) -> Tensor:
    """Shape, dtype and (contiguous) strides of the result."""
    torch._check(a.dim() == 2 and b.dim() == 2)
    torch._check(a.shape[1] == b.shape[1], lambda: f"{NAME}: both operands must be K-major, [M, K] and [N, K]")
    if bias is not None:
        torch._check(bias.dim() == 1 and bias.shape[0] == b.shape[0], lambda: f"{NAME}: bias must be [N]")
    return a.new_empty((a.shape[0], b.shape[0]), dtype=dtype)


def cuda(
    a: Tensor,
    b: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    tile: int,
    accumulator_bits: int,
    dtype: torch.dtype,
    bias: Tensor | None = None,
    counter: str = "",
) -> Tensor:
    """The operator on CUDA tensors (``triton_saturating_mm.py``).

    Raises:
        DeviceError: Triton is not installed.
        KernelError: operands that do not fit each other, or the kernel does not compile or launch.
    """
    check(a, b, scale_a, scale_b)
    launch = triton_bodies(NAME).launch
    result: Tensor = launch(a, b, scale_a, scale_b, tile, accumulator_bits, dtype, bias, counter)
    return result


def traffic(m: Expression, n: Expression, k: Expression, out_itemsize: int) -> Traffic:
    """Bytes and operations of one product; each operand is read once (the tiles share the cache).

    Counting adds a comparison and a sum per partial sum, and 16 bytes per program: not in the price.
    """
    return Traffic(NAME, (m + n) * k + 2 * SCALE_BYTES, m * n * out_itemsize, 2 * m * n * k, "int8")


KERNEL = register(Kernel(NAME, SCHEMA, reference, cpu, fake, traffic), cuda, native)
