"""Scales: from the largest magnitude to the factor that quantises and the factor that dequantises.

With v the unscaled transform (±1 entries) of order n and b bits: qmax = 2^(b-1) - 1, q = round(v·qmax/amax), and
q·scale is the *orthonormal* transform for scale = amax/(qmax·√n): the transform's normalisation rides on the scale.
Where a draw is added before rounding, the factor qmax/amax is taken a hair lower (HEADROOM), so that no rounding leaves
±qmax and a kernel need not clamp.
A NaN or inf in the extent of a scale makes that scale NaN or inf, hence the result, never a plausible number.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hadamard_fx.errors import SchemeError

from .arithmetic import HEADROOM, SMALLEST
from .traffic import ALIGNMENT

__all__ = [
    "HEADROOM",
    "SMALLEST",
    "carrier_dtype",
    "padded_columns",
    "padded_kept",
    "qmax",
    "scale_factor",
    "scales",
    "summed_tokens",
]

_CARRIERS = {"int8": torch.int8, "float8_e4m3": torch.float8_e4m3fn}


def qmax(bits: int) -> int:
    """The largest integer of a symmetric grid: 7 for 4 bits, 127 for 8."""
    return int(2 ** (bits - 1)) - 1


def carrier_dtype(carrier: str) -> torch.dtype:
    """The dtype that holds the integers.

    Raises:
        SchemeError: no such carrier.
    """
    if carrier not in _CARRIERS:
        raise SchemeError(f"carrier must be one of {', '.join(_CARRIERS)}, got {carrier!r}")
    return _CARRIERS[carrier]


def padded_columns(columns: int, order: int) -> int:
    """Kp of a full transform: whole blocks, and a multiple of 16."""
    return -(-columns // max(order, 16)) * max(order, 16)


def padded_kept(tokens: int, order: int, rank: int) -> int:
    """Lp of a rank cut: ``rank`` columns per started block of ``order`` tokens, rounded up to a multiple of 16."""
    return -(-(-(-tokens // order) * rank) // ALIGNMENT) * ALIGNMENT


def summed_tokens(order: int, rank: int, group: int = 0) -> int:
    """Tokens of one partial sum of ``compress_tokens``: what one program of its kernel reads at least, a group where
    tokens share scales in groups."""
    if group:
        return group
    kept = 1 << (rank - 1).bit_length()
    return max(256, 16 * order // kept)


def scale_factor(bits: int, order: int) -> float:
    """scale / amax."""
    return 1.0 / (qmax(bits) * math.sqrt(order))


def scales(amax: Tensor, bits: int, order: int, rounding: str) -> tuple[Tensor, Tensor]:
    """(qmax/amax, dequantising scale) from the largest magnitudes, float32 in and out; NaN stays NaN."""
    amax = torch.where(amax < SMALLEST, SMALLEST, amax)
    top = qmax(bits) * (1.0 if rounding == "nearest" else HEADROOM)
    # Not ``top / amax``, which torch computes as a rounded reciprocal times top.
    return torch.full_like(amax, top) / amax, amax * scale_factor(bits, order)
