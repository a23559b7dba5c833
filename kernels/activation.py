"""The pointwise functions of a recurrence: σ of the sum, and its gradient from the state h = σ(z) alone.

- ``relu``: max(z, 0); σ' is 1 where h > 0.
- ``modrelu``: sign(z)·max(|z| + c, 0), c one number for each unit; σ' is 1 where h ≠ 0 (Arjovsky et al. 2016).
- ``tanh``: σ' = 1 − h².
- ``identity``: z.

A NaN in h is a NaN in the gradient wherever that is multiplied with it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hadamard_fx.errors import OptionError

__all__ = ["ACTIVATIONS", "activate", "check_activation", "modrelu", "through"]

ACTIVATIONS = ("relu", "modrelu", "tanh", "identity")


def check_activation(activation: str, threshold: Tensor | None) -> None:
    """Whether there is such a function, and a threshold exactly where it has one.

    Raises:
        OptionError: there is not.
    """
    if activation not in ACTIVATIONS:
        raise OptionError(f"recurrence: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if (threshold is not None) is not (activation == "modrelu"):
        raise OptionError(f"recurrence: modrelu needs a threshold and no other activation has one, got {activation!r}")


def modrelu(z: Tensor, threshold: Tensor) -> Tensor:
    """sign(z)·max(|z| + c, 0), with one c for each feature [n] of z [..., n]."""
    return torch.sign(z) * torch.relu(z.abs() + threshold)


def activate(z: Tensor, activation: str, threshold: Tensor | None) -> Tensor:
    """σ(z), z [..., n], threshold [n]."""
    if activation == "modrelu":
        assert threshold is not None
        return modrelu(z, threshold)
    return {"relu": torch.relu, "tanh": torch.tanh, "identity": torch.clone}[activation](z)


def through(gradient: Tensor, h: Tensor, activation: str) -> Tensor:
    """∂loss/∂z from ∂loss/∂h and h, of one shape."""
    if activation == "relu":
        return torch.ops.aten.threshold_backward(gradient, h, 0)  # type: ignore[no-any-return]
    if activation == "tanh":
        return gradient * (1 - h * h)
    return torch.where(h == 0, 0, gradient) if activation == "modrelu" else gradient.clone()
