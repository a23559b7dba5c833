"""The launcher of the Triton kernel behind saturating_mm; see ``triton_saturating_kernel.py``."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from hadamard_fx import compat
from hadamard_fx.saturating import accumulator_limit

from . import saturation
from .library import failure
from .triton_launch import Launch
from .triton_saturating_kernel import saturating_kernel

__all__ = ["launch"]


def launch(
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
    """The product on the device of ``a``; any strides.

    Raises:
        KernelError: the kernel does not compile or launch.
    """
    out = torch.empty((a.shape[0], b.shape[0]), dtype=dtype, device=a.device)
    if out.numel() == 0 or a.shape[1] == 0:
        return out.zero_() if bias is None else out.copy_(bias.expand_as(out))
    wide = torch.int16 in (a.dtype, b.dtype)
    if wide and a.dtype != b.dtype:
        a, b = a.to(torch.int16), b.to(torch.int16)
    counts = scale_a  # any tensor where nothing is counted
    if counter:
        fake = compat.is_fake(a)
        counts = a.new_empty(2, dtype=torch.int64) if fake else saturation.counter(counter, a.device)
    sizes = (a.shape[0], b.shape[0], a.shape[1], *a.stride(), *b.stride())
    dtypes = (a.dtype, dtype, None if bias is None else bias.dtype)
    prepared = _prepared(sizes, dtypes, tile, accumulator_bits, wide, bool(counter))
    operands = (a, b, scale_a.contiguous(), scale_b.contiguous(), out, counts)
    try:
        prepared(*operands, scale_b if bias is None else bias.contiguous())
    except Exception as error:
        shape = {"M": sizes[0], "N": sizes[1], "K": sizes[2], "tile": tile}
        raise failure("saturating_mm", error, **shape) from error
    return out


@functools.lru_cache(maxsize=4096)
def _prepared(
    sizes: tuple[int, ...],
    dtypes: tuple[torch.dtype | None, ...],
    tile: int,
    accumulator_bits: int,
    wide: bool,
    count: bool,
) -> Launch:
    """Everything but the tensors; a launch serves one combination of ``dtypes`` (operands, result, bias)."""
    m, n, k = sizes[:3]
    block_k = max(tile, 32) if tile else 64  # the int8 product takes 32 columns at least
    block_m, block_n = (64 if m > 32 else 32), (64 if n > 32 else 32)
    programs = -(-m // block_m) * -(-n // block_n)
    numbers = (*sizes, -(-k // (tile or block_k)), accumulator_limit(accumulator_bits))
    constants = (tile, block_m, block_n, block_k, wide, count, dtypes[-1] is not None)
    options = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": False}
    return Launch(saturating_kernel, programs, (*numbers, *constants), options, loose=1)
