"""After training: W and U of a floating-point net onto a grid of k bits, for the inputs that they really see.

``nearest`` rounds each weight by itself; ``gptq`` and ``adaround`` minimise the error of the sums W h and U x over a
calibration batch. A trained net is enough: nothing is trained again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError
from .adaround import adaround
from .gptq import gptq
from .quantizers import Quantizer, integers, minmax_range, mse_range
from .recurrent import OrthogonalRNN

__all__ = ["METHODS", "grams", "quantize_weights", "rounded"]

METHODS = ("nearest", "gptq", "adaround")


def rounded(weight: Tensor, gram: Tensor, alpha: Tensor, bits: int, method: str) -> Tensor:
    """The weight on its grid.

    Args:
        weight: [n, m].
        gram: Σ x xᵀ of its inputs, [m, m].
        alpha: the range, a scalar or [n, 1].
        bits: k, 2..16.
        method: one of ``METHODS``.

    Returns:
        [n, m] of the weight's dtype.

    Raises:
        OptionError: an unknown method, or bits out of range.
    """
    if method not in METHODS:
        raise OptionError(f"quantize_weights: method must be one of {', '.join(METHODS)}, got {method!r}")
    if method == "gptq":
        codes = gptq(weight, gram, alpha, bits)
    elif method == "adaround":
        codes = adaround(weight, gram, alpha, bits)
    else:
        codes = integers(weight.double(), alpha.double(), bits)
    step: Tensor = alpha.double() / 2 ** (bits - 1)
    return (codes * step).to(weight.dtype)


@torch.no_grad()
def grams(model: OrthogonalRNN, calibration: Tensor) -> tuple[Tensor, Tensor]:
    """Σ h hᵀ [n, n] over all states that W multiplies, and Σ x xᵀ [i, i], in float64.

    Args:
        calibration: x [batch, T, i].
    """
    states = model.states(calibration)[:-1].flatten(0, 1).double()  # the last one is multiplied with V alone
    x = calibration.flatten(0, 1).double()
    return states.T @ states, x.T @ x


def quantize_weights(
    model: OrthogonalRNN,
    calibration: Tensor,
    bits: int,
    method: str = "gptq",
    range: str = "minmax",
    per_channel: bool = False,
) -> OrthogonalRNN:
    """A net with W and U of ``bits`` bits, made of a trained one in floating point, which is left as it is.

    Args:
        model: trained with ``bits=None``; put into evaluation mode.
        calibration: x [batch, T, i].
        bits: k, 2..16.
        method: ``"nearest"``, ``"gptq"`` or ``"adaround"``.
        range: of the grids, ``"minmax"`` or ``"mse"``.
        per_channel: a range for each row of W.

    Returns:
        A net whose ranges are fixed; ``quantize_activations`` takes it.

    Raises:
        OptionError: a net that is quantised already or has a signed Hadamard matrix, or an argument out of range.
    """
    if model.config.bits is not None or model.config.training == "hadamard":
        raise OptionError("quantize_weights: the net must be one in floating point: bits=None, bjorck or projunn")
    if range not in ("minmax", "mse"):
        raise OptionError(f"quantize_weights: range must be minmax or mse, got {range!r}")
    model.eval()
    config = replace(model.config, bits=bits, training="projunn", range="pact", per_channel=per_channel)
    made = OrthogonalRNN(config).to(model.output.weight)
    gram_states, gram_inputs = grams(model, calibration)
    for name, gram, by_row in (("recurrent", gram_states, per_channel), ("input", gram_inputs, False)):
        weight = getattr(model, name).detach()
        alpha = mse_range(weight, bits, by_row) if range == "mse" else minmax_range(weight, by_row)
        _place(made, name, rounded(weight, gram, alpha, bits, method), alpha)
    made.output.load_state_dict(model.output.state_dict())
    if made.threshold is not None and model.threshold is not None:
        made.threshold.data.copy_(model.threshold.data)
    return made.eval()


def _place(model: OrthogonalRNN, name: str, weight: Tensor, alpha: Tensor) -> None:
    """A weight that is on a grid already behind a quantiser of that grid, which leaves it there."""
    chain: Any = model.parametrizations[name]  # type: ignore[index]
    quantizer = chain[0]
    assert isinstance(quantizer, Quantizer) and quantizer.learned is not None
    quantizer.learned.data.copy_(alpha)
    chain.original.data.copy_(weight)
