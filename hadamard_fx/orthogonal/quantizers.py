"""Weight quantisers of k bits: one grid, four ways to find its range, straight-through gradients.

q_k(W) = (α/2^{k−1}) · clip(round(2^{k−1} W/α), −2^{k−1}, 2^{k−1} − 1), rounded half to even. α is the range:

- ``minmax``: α = max|W| (QORNN). The largest positive weight lands one step below itself.
- ``mse``: the α in (0, max|W|] that minimises ‖W − q_k(W)‖², by search.
- ``lsq``: the step α/2^{k−1} is a parameter; its gradient is scaled by 1/√(n·q_max).
- ``pact``: α is a parameter, which only the clipped weights move.

The gradient of W passes the rounding unchanged; learned ranges stop it where W is clipped, as their papers do.

Sources: QORNN (arXiv 2402.04012); LSQ, Esser et al. 2020 (arXiv 1902.08153), section 2; PACT (arXiv 1805.06085),
section 3, which clips activations: here both sides of a weight.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..errors import OptionError

__all__ = ["RANGES", "Quantizer", "integers", "minmax_range", "mse_range", "quantize"]

RANGES = ("minmax", "mse", "lsq", "pact")


def _levels(bits: int) -> int:
    if not 2 <= bits <= 16:
        raise OptionError(f"quantizer: bits must be from 2 to 16, got {bits}")
    return int(2 ** (bits - 1))


def integers(weight: Tensor, alpha: Tensor, bits: int) -> Tensor:
    """clip(round(2^{k−1} W/α), −2^{k−1}, 2^{k−1} − 1).

    Args:
        weight: [n, m], floating.
        alpha: positive, a scalar or [n, 1].

    Returns:
        [n, m] of the weight's dtype, whole numbers.
    """
    levels = _levels(bits)
    return torch.round(weight * (levels / alpha)).clamp(-levels, levels - 1)


def quantize(weight: Tensor, alpha: Tensor, bits: int) -> Tensor:
    """q_k(W) without a gradient of its own; arguments as for ``integers``, same shape and dtype."""
    return integers(weight, alpha, bits) * (alpha / _levels(bits))


def minmax_range(weight: Tensor, per_channel: bool = False) -> Tensor:
    """max|W|: a scalar, or [n, 1] with one for each row; the smallest normal number where all weights are zero."""
    largest = weight.abs().amax(1, keepdim=True) if per_channel else weight.abs().amax()
    return largest.clamp_min(torch.finfo(weight.dtype).tiny * 2**16)


def mse_range(weight: Tensor, bits: int, per_channel: bool = False, candidates: int = 81) -> Tensor:
    """The α that minimises ‖W − q_k(W)‖², of ``candidates`` evenly spaced between 1 and 0.2 times max|W|.

    Returns:
        A scalar, or [n, 1] with one for each row.
    """
    largest = minmax_range(weight, per_channel)
    best, least = largest, torch.full_like(largest, math.inf)
    for place in range(candidates):  # plain numbers: a graph pass traces this with tensors that have no values
        alpha = (1.0 - 0.8 * place / max(candidates - 1, 1)) * largest
        error = (quantize(weight, alpha, bits) - weight).square()
        error = error.sum(1, keepdim=True) if per_channel else error.sum()
        better = error < least
        best, least = torch.where(better, alpha, best), torch.where(better, error, least)
    return best


class _LearnedStep(torch.autograd.Function):
    """LSQ, section 2.1: ∂q/∂s = round(v) − v inside, the bound outside, where v = W/s."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, weight: Tensor, step: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(weight, step)
        ctx.bits = bits  # type: ignore[attr-defined]
        return quantize(weight, step * _levels(bits), bits)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        weight, step = ctx.saved_tensors  # type: ignore[attr-defined]
        (gradient,) = gradients
        levels = _levels(ctx.bits)  # type: ignore[attr-defined]
        scaled = weight / step
        inside = (scaled >= -levels) & (scaled <= levels - 1)
        slope = torch.where(inside, scaled.round() - scaled, scaled.clamp(-levels, levels - 1))
        to_step = gradient * slope
        weights_of_a_step = weight.numel() // step.numel()
        damping = 1.0 / math.sqrt(weights_of_a_step * (levels - 1))
        return gradient * inside, damping * to_step.sum_to_size(step.shape), None


class _LearnedClip(torch.autograd.Function):
    """PACT, section 3: ∂q/∂α = ±1 where W is clipped, 0 inside."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, weight: Tensor, alpha: Tensor, bits: int) -> Tensor:
        ctx.save_for_backward(weight, alpha)
        return quantize(weight, alpha, bits)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        weight, alpha = ctx.saved_tensors  # type: ignore[attr-defined]
        (gradient,) = gradients
        clipped = weight.abs() > alpha
        return gradient * ~clipped, (gradient * clipped * weight.sign()).sum_to_size(alpha.shape), None


class Quantizer(nn.Module):
    """Parametrization W → q_k(W), for ``torch.nn.utils.parametrize``; put it after ``Bjorck``, or alone.

    Args:
        weight: [n, m], of the values to start from: learned ranges take their first value from it (LSQ:
            2 E|W|/√q_max for the step; PACT: max|W|).
        bits: k, 2..16.
        range: one of ``RANGES``.
        per_channel: one α for each row instead of one for all.

    Raises:
        OptionError: unknown range, bits out of range, or a weight that has not two axes.
    """

    def __init__(self, weight: Tensor, bits: int, range: str = "minmax", per_channel: bool = False) -> None:
        super().__init__()
        if range not in RANGES:
            raise OptionError(f"quantizer: range must be one of {', '.join(RANGES)}, got {range!r}")
        if weight.ndim != 2:
            raise OptionError(f"quantizer: a weight must have two axes, got shape {tuple(weight.shape)}")
        self.levels = _levels(bits)
        self.bits, self.range, self.per_channel = bits, range, per_channel
        self.learned: nn.Parameter | None = None
        if range == "lsq":
            mean = weight.detach().abs().mean(1, keepdim=True) if per_channel else weight.detach().abs().mean()
            self.learned = nn.Parameter((2 * mean / math.sqrt(self.levels - 1)).clamp_min(1e-8))
        elif range == "pact":
            self.learned = nn.Parameter(minmax_range(weight.detach(), per_channel))

    def _positive(self) -> Tensor:
        """The learned value; a step of the optimizer may carry it below zero, where its mirror image goes on."""
        assert self.learned is not None
        return self.learned.abs().clamp_min(torch.finfo(self.learned.dtype).tiny * 2**16)

    def alpha(self, weight: Tensor) -> Tensor:
        """The range for that weight [n, m]: a scalar or [n, 1], without gradient."""
        with torch.no_grad():
            if self.range == "minmax":
                return minmax_range(weight, self.per_channel)
            if self.range == "mse":
                return mse_range(weight, self.bits, self.per_channel)
            return self._positive() * (self.levels if self.range == "lsq" else 1)

    def forward(self, weight: Tensor) -> Tensor:
        """[n, m] → [n, m] on the grid, of the same dtype."""
        if self.range == "lsq":
            return _LearnedStep.apply(weight, self._positive(), self.bits)  # type: ignore[no-any-return,no-untyped-call]
        if self.range == "pact":
            return _LearnedClip.apply(weight, self._positive(), self.bits)  # type: ignore[no-any-return,no-untyped-call]
        with torch.no_grad():
            change = quantize(weight, self.alpha(weight), self.bits) - weight
        return weight + change  # the change is a constant: the gradient goes straight through

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Assigning a weight makes it the one before rounding."""
        return weight

    def extra_repr(self) -> str:
        return f"{self.bits} bits, {self.range}, per {'channel' if self.per_channel else 'tensor'}"
