"""Rounding to integers: nearest, stochastic, pseudo-stochastic; one definition for CPU, interpreter and GPU.

All three are ``nearest(v + d)``, nearest being half to even:

- ``nearest``: d = 0.
- ``stochastic``: d = u - 1/2 with u uniform in [0, 1), so that nearest(v + d) = floor(v + u), unbiased: E = v. The
  draw is counter-based: u is a hash of (seed, flat index in the result), hence a recomputation under activation
  checkpointing, on whatever device, gives the same integers.
- ``pseudo_stochastic`` (NITI, arXiv 2009.13108): u is a hash of the bits of the value before scaling: no generator.

The hash of a 32-bit integer i is ``h = i·A + word(seed); h ^= h >> 16; h *= B; u = (h >> 9)·2^-23``, modulo 2^32: a
Weyl sequence, one fold, one multiplication whose upper 23 bits, the well-mixed ones, are the mantissa of u. It is
this short because a GPU kernel that spends ten integer operations on an element is limited by them, not by bytes. Its
price: all seeds walk the one sequence of 2^32 counters from different starts, so two large tensors of a step (2^27
elements) may meet the same draws at shifted indices, with a probability of a few percent.

The pseudo-stochastic draw follows the last bit of its value: it repeats on one device, while two devices that add the
terms of a transform in another order draw differently, from the same distribution.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .arithmetic import FOLD, MULTIPLIER, SEED_MULTIPLIER, WEYL

__all__ = [
    "FOLD",
    "MULTIPLIER",
    "SEED_MULTIPLIER",
    "WEYL",
    "dither",
    "flat_index",
    "hashed",
    "reference_uniform",
    "require_seed",
    "round_to_integer",
    "seed_word",
]

_WORD = 0xFFFFFFFF


def _signed(word: int) -> int:
    """The int32 with the bits of a 32-bit word."""
    return word - (1 << 32) if word >= 1 << 31 else word


def reference_uniform(index: int, seed: int) -> float:
    """u in [0, 1) for one flat index and one 64-bit seed: the definition, in Python integers.

    Args:
        index: flat index in the result (stochastic), or the bits of the float32 value (pseudo-stochastic, seed 0).
        seed: any int64.
    """
    h = (index * WEYL + (seed ^ (seed >> 32)) * SEED_MULTIPLIER) & _WORD
    h ^= h >> FOLD
    h = (h * MULTIPLIER) & _WORD
    return (h >> 9) * 2.0**-23


def seed_word(seed: Tensor) -> Tensor:
    """The 64-bit seed folded to an int32: 0-d int64 in, 0-d int32 out."""
    return (seed ^ (seed >> 32)).to(torch.int32) * _signed(SEED_MULTIPLIER)


def require_seed(seed: Tensor | None, rounding: str) -> None:
    """Refuse a stochastic rounding without a seed."""
    if seed is None and rounding == "stochastic":
        raise ValueError("stochastic rounding needs a seed: a 0-d int64 tensor on the device of the input")


def flat_index(rows: int, columns: int, device: torch.device) -> Tensor:
    """Flat row-major index of every element of a [rows, columns] result, modulo 2^32, as int32."""
    row = torch.arange(rows, dtype=torch.int32, device=device) * columns
    return row[:, None] + torch.arange(columns, dtype=torch.int32, device=device)[None, :]


def hashed(index: Tensor, seed: Tensor | None = None) -> Tensor:
    """h of int32 indices and a 0-d int64 seed, int32: it wraps; shifts are arithmetic, so upper bits are masked."""
    counter = index * _signed(WEYL)
    counter = counter if seed is None else counter + seed_word(seed)
    h = counter ^ ((counter >> FOLD) & (_WORD >> FOLD))
    return h * _signed(MULTIPLIER)


def _centred(h: Tensor) -> Tensor:
    """u - 1/2 from the hash."""
    return ((h >> 9) & (_WORD >> 9)).to(torch.float32) * 2.0**-23 - 0.5


def dither(value: Tensor, index: Tensor, seed: Tensor | None, rounding: str) -> Tensor | None:
    """d, what is added before rounding to nearest, or None for nothing.

    Args:
        value: float32, before scaling; its bits feed the pseudo-stochastic hash.
        index: int32 flat index of every element, of value's shape.
        seed: 0-d int64, for ``"stochastic"`` alone.
        rounding: one of ``hadamard_fx.scheme.ROUNDINGS``.
    """
    if rounding == "nearest":
        return None
    if rounding == "pseudo_stochastic":
        return _centred(hashed(value.view(torch.int32)))
    require_seed(seed, rounding)
    assert seed is not None
    return _centred(hashed(index, seed))


def round_to_integer(scaled: Tensor, offset: Tensor | None, qmax: int) -> Tensor:
    """nearest(scaled + offset), clamped to ±qmax, as float32."""
    shifted = scaled if offset is None else scaled + offset
    return torch.round(shifted).clamp(-qmax, qmax)
