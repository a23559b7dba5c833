"""AdaRound: learn for each weight whether to round it down or up.

    ŵ = s · clip(⌊w/s⌋ + h(v), −2^{k−1}, 2^{k−1} − 1),    h(v) = clip(1.2 σ(v) − 0.1, 0, 1)

v starts where h(v) is the fraction of w/s and minimises, by Adam,

    tr (w − ŵ) G (w − ŵ)ᵀ / N  +  λ Σ 1 − |2 h(v) − 1|^β,

the error of the outputs for inputs with the Gram matrix G, and a term that drives h to 0 or 1: it is switched on after
a fifth of the steps, β falling from 20 to 2. In the end h is rounded.

Source: AdaRound, Nagel et al. 2020 (arXiv 2004.10568), section 3.3 and 4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .quantizers import integers

__all__ = ["adaround"]

STRETCH, SHIFT = 1.2, -0.1
WARM_UP = 0.2
"""Share of the steps without the second term."""


def _open(v: Tensor) -> Tensor:
    return (STRETCH * v.sigmoid() + SHIFT).clamp(0, 1)


def adaround(
    weight: Tensor, gram: Tensor, alpha: Tensor, bits: int, steps: int = 1000, rate: float = 1e-2, penalty: float = 0.3
) -> Tensor:
    """The integers of ``weight``, in float64; never worse than nearest rounding for inputs of that Gram matrix.

    Args:
        weight: [n, m].
        gram: G [m, m], of any scale.
        alpha: the range, a scalar or [n, 1].
        bits: k, 2..16.
        steps, rate: of Adam.
        penalty: λ, relative to the mean error per weight of nearest rounding.

    Returns:
        [n, m], whole numbers in −2^{k−1} .. 2^{k−1} − 1: those next to the scaled weight, below or above, or clipped.
    """
    levels = 2 ** (bits - 1)
    wide, gram, step = weight.detach().double(), gram.detach().double(), alpha.detach().double() / levels
    nearest = integers(wide, alpha.double(), bits)

    def error(codes: Tensor) -> Tensor:
        """tr (w − ŵ) G (w − ŵ)ᵀ for each row [n]."""
        missing = wide - step * codes
        found: Tensor = ((missing @ gram) * missing).sum(1)
        return found

    base = error(nearest)
    scale = base.mean().clamp_min(torch.finfo(torch.float64).tiny)
    floor = torch.floor(wide / step)
    inside = ((wide / step - floor).clamp(1e-3, 1 - 1e-3) - SHIFT) / STRETCH
    v = torch.log(inside / (1 - inside)).requires_grad_()
    optimizer = torch.optim.Adam([v], lr=rate)
    for number in range(steps):
        with torch.enable_grad():
            opened = _open(v)
            loss = error((floor + opened).clamp(-levels, levels - 1)).sum() / scale
            share = (number / steps - WARM_UP) / (1 - WARM_UP)
            if share > 0:
                beta = 2 + (20 - 2) * 0.5 * (1 + math.cos(math.pi * share))
                loss = loss + penalty * (1 - (2 * opened - 1).abs().pow(beta)).sum()
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
    learned = (floor + (_open(v.detach()) >= 0.5)).clamp(-levels, levels - 1)
    better = error(learned) < base  # rows do not depend on each other
    return torch.where(better[:, None], learned, nearest)
