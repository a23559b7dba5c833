"""A recurrent matrix of signs alone that is exactly orthogonal: W = diag(sign u) H_d/√d (HadamRNN, arXiv 2502.00047).

H_d is Sylvester's matrix, whose rows are orthogonal and whose entries are ±1; signs of rows change neither. So W has
one magnitude, 1/√d, and d free bits, and W h is a fast Walsh–Hadamard transform, d log₂ d additions, and d signs. The
latent u is trained; the gradient of its sign is taken to be 1 where |u| ≤ 1 and 0 beyond (a straight-through
estimator with saturation), so that a sign can change again.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..kernels.walsh import sylvester

__all__ = ["SignedHadamard", "fast_walsh_hadamard"]


def fast_walsh_hadamard(x: Tensor) -> Tensor:
    """x H_d along the last axis, by log₂ d sweeps of sums and differences; any floating or integer dtype.

    Args:
        x: [..., d], d a power of two.
    """
    order, made = _power_of_two(x.shape[-1]), x
    half = 1
    while half < order:
        pairs = made.reshape(*x.shape[:-1], order // (2 * half), 2, half)
        first, second = pairs.unbind(-2)
        made = torch.stack((first + second, first - second), -2).reshape(x.shape)
        half *= 2
    return made


def _power_of_two(order: int) -> int:
    if order < 2 or order & (order - 1):
        raise OptionError(f"SignedHadamard: the size must be a power of two of at least 2, got {order}")
    return order


class _Sign(torch.autograd.Function):
    """±1, sign(0) = 1."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, latent: Tensor) -> Tensor:
        ctx.save_for_backward(latent)
        one = torch.ones_like(latent)
        return torch.where(latent < 0, -one, one)  # of two numbers, torch 2.11 compiles the gradient to zero

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        (latent,) = ctx.saved_tensors  # type: ignore[attr-defined]
        passed: Tensor = gradients[0] * (latent.abs() <= 1)
        return passed


class SignedHadamard(nn.Module):
    """Parametrization: u [d] → W [d, d] = diag(sign u) H_d/√d.

    Args:
        size: d, a power of two.

    Raises:
        OptionError: another size.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = _power_of_two(size)

    def signs(self, latent: Tensor) -> Tensor:
        """±1 [d], with the straight-through gradient."""
        found: Tensor = _Sign.apply(latent)  # type: ignore[no-untyped-call]
        return found

    def codes(self, latent: Tensor) -> Tensor:
        """√d·W: ±1, [d, d] of the latent's dtype."""
        return self.signs(latent)[:, None] * sylvester(self.size, latent.device, latent.dtype)

    def forward(self, latent: Tensor) -> Tensor:
        """[d] → [d, d]."""
        return self.codes(latent) / math.sqrt(self.size)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The u [d] whose W has the largest inner product with a matrix [d, d]; its own for a W."""
        matrix = sylvester(self.size, weight.device, weight.dtype)
        return (weight * matrix).sum(1) / math.sqrt(self.size)
