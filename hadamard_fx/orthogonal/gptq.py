"""GPTQ: round the columns of a weight one after the other, and let the rest make up for each error.

For y = w x with the Gram matrix G = Σ x xᵀ of its inputs, the error of a rounding ŵ is tr (w − ŵ) G (w − ŵ)ᵀ. Once
column j is rounded, the columns behind it that minimise that error, given all that is rounded, are

    w[:, j+1:] −= (w[:, j] − ŵ[:, j]) / L[j, j] · L[j, j+1:],    G⁻¹ = Lᵀ L, L upper triangular,

the rows of L being those of the inverse of what is left of G at each step.

Source: GPTQ, Frantar et al. 2022 (arXiv 2210.17323), section 3; 1 % of the mean diagonal is added to G, as there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .quantizers import integers

__all__ = ["DAMPING", "gptq"]

DAMPING = 0.01
"""Share of the mean of G's diagonal that is added to it: inputs that are always zero would make it singular."""


def gptq(weight: Tensor, gram: Tensor, alpha: Tensor, bits: int, damping: float = DAMPING) -> Tensor:
    """The integers of ``weight``, in float64.

    Args:
        weight: [n, m].
        gram: G [m, m], of any scale.
        alpha: the range, a scalar or [n, 1]; the grid stays as it is.
        bits: k, 2..16.
        damping: above 0.

    Returns:
        [n, m], whole numbers in −2^{k−1} .. 2^{k−1} − 1.
    """
    left, alpha, gram = weight.double().clone(), alpha.double(), gram.double()
    mean = gram.diagonal().mean()
    ridge = damping * torch.where(mean > 0, mean, torch.ones_like(mean))
    inverse = torch.linalg.inv(gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
    upper = torch.linalg.cholesky(inverse, upper=True)
    codes, step = torch.empty_like(left), alpha / 2 ** (bits - 1)
    for column in range(left.shape[1]):
        codes[:, column : column + 1] = integers(left[:, column : column + 1], alpha, bits)
        error = left[:, column] - (codes[:, column : column + 1] * step)[:, 0]
        left[:, column + 1 :] -= torch.outer(error / upper[column, column], upper[column, column + 1 :])
    return codes
