"""Random signs of tokens: what makes a rank cut unbiased.

With D a diagonal of independent random signs, E[D Ĥᵀ Ĥ D] = (rank / order) I: the cut of D x and D g_y, times
order / rank, is g_w in expectation, whatever tokens have in common. Without signs the cut is the low-pass filter of HOT
(arXiv 2503.21261, section 3), which is exact for tokens that resemble their neighbours and misleads where they do not.

A sign is a hash of (seed, token), the one of ``rounding.py``: any kernel finds it anywhere in a tensor. g_y and x must
meet with the same seed. It is made of the bits of a step's data and weights, as the draws of pseudo-stochastic rounding
are (NITI, arXiv 2009.13108): no random number of the user's changes, and whoever computes it again, a checkpoint or a
memory budget, finds the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .arithmetic import WEYL
from .rounding import hashed, reference_uniform

__all__ = ["normaliser", "reference_signs", "seed_of", "token_signs"]

_BITS = {
    **dict.fromkeys((torch.float16, torch.bfloat16), torch.int16),
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def seed_of(*tensors: Tensor) -> Tensor:
    """A 0-d int64 seed from the bits of the first row of each: the sum of integers, which no order of terms changes.

    Args:
        tensors: one or more, of a real dtype, not empty, on one device.
    """
    seed = torch.zeros((), dtype=torch.int64, device=tensors[0].device)
    for tensor in tensors:
        row = tensor.select(0, 0) if tensor.dim() else tensor
        bits = row.view(_BITS[tensor.dtype]) if tensor.dtype in _BITS else row
        seed = seed * WEYL + bits.to(torch.int64).sum()
    return seed


def reference_signs(tokens: int, seed: int) -> Tensor:
    """±1 of every token [tokens, 1] in float64: -1 where the uniform draw of (seed, token) is at least 1/2."""
    draws = [reference_uniform(token, seed) for token in range(tokens)]
    return torch.tensor([-1.0 if u >= 0.5 else 1.0 for u in draws], dtype=torch.float64).view(tokens, 1)


def token_signs(tokens: int, seed: Tensor) -> Tensor:
    """The same in float32, from a 0-d int64 seed on the device."""
    negative = hashed(torch.arange(tokens, dtype=torch.int32, device=seed.device), seed) < 0
    return (1.0 - 2.0 * negative.to(torch.float32)).view(tokens, 1)


def normaliser(order: int, rank: int, random: bool) -> int:
    """What the product of two operands is divided by, as ``scaling.scale_factor`` takes it: order, where the kept rows
    are orthonormal; rank behind random signs, where the product is multiplied by order / rank besides."""
    return rank if random else order
