"""The product of two quantised operands, with the scales applied where the result is still in registers.

Both operands are K-major: ``a`` [M, K] and ``b`` [N, K] hold integers, in int8 or in float8_e4m3 (which holds up to
four bits exactly). The result is

    out[m, n] = Σ_g scale_a[g, m] · scale_b[g, n] · Σ_{k in group g} a[m, k] · b[n, k]

The inner sum is exact integer arithmetic, so it is the same on every device, bit for bit; law 2 of the algorithms (a
scale may not vary along the contracted axis unless each block's partial sum is rescaled) is the outer sum, in float32.
HOT (arXiv 2503.21261, section 3) has one group: g_x = s_g s_w/16 · Q4(g_y B16)·Q4(B16ᵀ w), and likewise g_w; here the
factor of the transform is part of the scales.

An int32 holds the sum of ``EXACT_COLUMNS`` products of int8; a longer contraction is cut there, and the pieces, which
share one scale, are added in float32. A NaN or infinite scale reaches every element that it belongs to.
"""

from __future__ import annotations

from typing import Any

import torch

from hadamard_fx.errors import KernelError

from .integer_mm import EXACT_COLUMNS, integer_mm
from .library import Kernel, register
from .traffic import SCALE_BYTES, Expression, Traffic, ceil_div, product_programs

__all__ = [
    "NAME",
    "QUANTIZED_MM",
    "check",
    "count_groups",
    "cpu",
    "cuda",
    "fake",
    "native",
    "reference",
    "traffic",
]

NAME = "quantized_mm"
SCHEMA = (
    "(Tensor a, Tensor b, Tensor scale_a, Tensor scale_b, int group_k, ScalarType dtype, Tensor? bias=None) -> Tensor"
)
CARRIERS = (torch.int8, torch.float8_e4m3fn)


def reference(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    group_k: int = 0,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """The formula of the module's docstring: integer sums in int64, everything else in float64.

    Args:
        a, b: [M, K] and [N, K], int8 or float8_e4m3 (integers).
        scale_a, scale_b: float32 [G, M] or [G, 1], and [G, N] or [G, 1]; a single row serves all groups.
        group_k: columns of a group, 0 for one group of all.
        bias: [N], added to every row.

    Returns:
        float64 [M, N].
    """
    left, right = (operand.to(torch.float32).to(torch.int64) for operand in (a, b))
    step = group_k or max(a.shape[1], 1)
    out = torch.zeros(a.shape[0], b.shape[0], dtype=torch.float64, device=a.device)
    for g in range(count_groups(scale_a, scale_b)):
        columns = slice(g * step, (g + 1) * step)
        scales = row_of(scale_a, g)[0].double()[:, None] * row_of(scale_b, g)[0].double()[None, :]
        out = out + scales * (left[:, columns] @ right[:, columns].T)
    return out if bias is None else out + bias.double()


def cpu(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    group_k: int,
    dtype: torch.dtype,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """The operator in functional PyTorch. ``a`` and ``b`` may have any strides.

    The second form, which the tests hold against the native one. Traceable with symbolic sizes where ``group_k`` is 0;
    a symbolic K must stay within ``EXACT_COLUMNS``, a plain K need not.

    Returns:
        [M, N] of ``dtype``.

    Raises:
        KernelError: operands that do not fit each other.
    """
    k = a.shape[1]
    if all(isinstance(size, int) for size in (*a.shape, *b.shape)):
        check(a, b, scale_a, scale_b, group_k)  # symbolic sizes must not be branched on; the fake checks those
    if not isinstance(k, int):
        if group_k:
            raise KernelError(NAME, f"K={k} group_k={group_k}", "groups of a symbolic K cannot be unrolled here")
        return _biased(_rescale(integer_mm(a, b), scale_a[:1], scale_b[:1]), bias).to(dtype)
    out = None
    for start, stop, g in groups(k, group_k, count_groups(scale_a, scale_b)):
        partial = integer_mm(a[:, start:stop], b[:, start:stop])
        term = _rescale(partial, row_of(scale_a, g), row_of(scale_b, g))
        out = term if out is None else out + term
    if out is None:
        out = torch.zeros(a.shape[0], b.shape[0], device=a.device)
    return _biased(out, bias).to(dtype)


def _biased(product: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """float32 [M, N] plus [N]."""
    return product if bias is None else product + bias.to(torch.float32)


def native(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    group_k: int,
    dtype: torch.dtype,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """The operator on CPU tensors: torch's integer product, then the rest in one pass (``cpp_transform.py``)."""
    from .cpp_transform import rescale

    check(a, b, scale_a, scale_b, group_k)
    if 0 in (*a.shape, b.shape[0]):
        return _biased(torch.zeros(a.shape[0], b.shape[0]), bias).to(dtype)
    out = None
    pieces = groups(a.shape[1], group_k, count_groups(scale_a, scale_b))
    narrow = dtype == torch.bfloat16 and len(pieces) == 1 and bias is None
    first = torch.bfloat16 if narrow else torch.float32
    for start, stop, g in pieces:
        scales = row_of(scale_a, g)[0], row_of(scale_b, g)[0]
        out = rescale(integer_mm(a[:, start:stop], b[:, start:stop]), *scales, out, first)
    assert out is not None
    if bias is not None:
        out += bias
    return out.to(dtype)


def count_groups(scale_a: torch.Tensor, scale_b: torch.Tensor) -> int:
    """G: a single row of scales, those of a weight for instance, serves every group of the other operand."""
    return max(int(scale_a.shape[0]), int(scale_b.shape[0]))


def row_of(scale: torch.Tensor, group: int) -> torch.Tensor:
    """The scales [1, …] of one group."""
    return scale if scale.shape[0] == 1 else scale[group : group + 1]


def groups(k: int, group_k: int, count: int) -> list[tuple[int, int, int]]:
    """The pieces (first column, end, row of the scales) that are summed exactly, each before one rescale."""
    step = group_k or k
    pieces = []
    for g in range(count):
        end = min((g + 1) * step, k)
        pieces += [(s, min(s + EXACT_COLUMNS, end), g) for s in range(g * step, end, EXACT_COLUMNS)]
    return pieces


def _rescale(partial: torch.Tensor, scale_a: torch.Tensor, scale_b: torch.Tensor) -> torch.Tensor:
    """int32 [M, N] times [1, M] or [1, 1] along the rows, then times [1, N] or [1, 1] along the columns."""
    return (partial.to(torch.float32) * scale_a.t()) * scale_b


def check(a: torch.Tensor, b: torch.Tensor, scale_a: torch.Tensor, scale_b: torch.Tensor, group_k: int) -> None:
    """Refuse operands that would give a plausible but wrong result."""
    m, k = a.shape
    n = b.shape[0]
    count = count_groups(scale_a, scale_b)
    if a.dtype not in CARRIERS or a.dtype != b.dtype:
        cause = f"both operands must be int8, or both float8_e4m3fn, not {a.dtype} and {b.dtype}"
    elif b.shape[1] != k:
        cause = f"the operands contract {k} and {b.shape[1]} columns; both must be K-major, [M, K] and [N, K]"
    elif scale_a.shape[1] not in (1, m) or scale_b.shape[1] not in (1, n):
        cause = f"scales must be [G, {m}] or [G, 1], and [G, {n}] or [G, 1], not {[*scale_a.shape]}, {[*scale_b.shape]}"
    elif {scale_a.shape[0], scale_b.shape[0]} - {1, count}:
        cause = f"scales for {scale_a.shape[0]} and {scale_b.shape[0]} groups: both must have as many, or one of them 1"
    elif group_k < 0 or (group_k == 0 and count != 1) or (group_k and k < (count - 1) * group_k):
        cause = f"{count} rows of scales do not fit groups of {group_k} columns (0 means one group)"
    elif group_k and k > count * group_k + 15:
        cause = f"{count} groups of {group_k} columns do not cover {k} columns"
    else:
        return
    raise KernelError(NAME, f"M={m} N={n} K={k} group_k={group_k}", cause)


def fake(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    group_k: int,
    dtype: torch.dtype,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Shape, dtype and (contiguous) strides of the result."""
    torch._check(a.dim() == 2 and b.dim() == 2 and scale_a.dim() == 2 and scale_b.dim() == 2)
    torch._check(a.shape[1] == b.shape[1], lambda: "quantized_mm: both operands must be K-major, [M, K] and [N, K]")
    if bias is not None:
        torch._check(bias.dim() == 1 and bias.shape[0] == b.shape[0], lambda: "quantized_mm: bias must be [N]")
    return a.new_empty((a.shape[0], b.shape[0]), dtype=dtype)


def traffic(m: Expression, n: Expression, k: Expression, carrier: str, out_itemsize: int, group_k: int = 0) -> Traffic:
    """Bytes and operations of one product; each operand is read once (the tiles share the cache).

    Args:
        m, n, k: sizes, ints or sympy symbols.
        carrier: ``"int8"`` or ``"float8_e4m3"``.
        out_itemsize: bytes of an element of the result.
        group_k: columns of a group, 0 for one group of all.
    """
    count = ceil_div(k, group_k) if group_k else 1
    return Traffic(
        kernel=NAME,
        read=(m + n) * k + (m + n) * count * SCALE_BYTES,
        written=m * n * out_itemsize,
        operations=2 * m * n * k,
        unit="int8" if carrier == "int8" else "float8",
        rescales=m * n * count if group_k else 0,
        programs=product_programs(m, n, k),
    )


def cuda(*arguments: Any) -> torch.Tensor:
    """The operator on a CUDA device (``quantized_mm_cuda``).

    Raises:
        DeviceError: Triton is not installed.
        KernelError: operands that do not fit each other, or no configuration compiles on this device.
    """
    from . import quantized_mm_cuda as launcher  # it needs this module

    return launcher.launch(*arguments)


QUANTIZED_MM = register(Kernel(NAME, SCHEMA, reference, cpu, fake, traffic, cuda, native))
