"""A recurrent net whose recurrent matrix is orthogonal, then quantised: h_t = σ(W h_{t−1} + U x_t), output V h + b.

W and U are quantised, V is not. Ways to train W, with a straight-through gradient of the quantiser:

- ``bjorck``: a latent R of any values, W = q_k(Björck(R)); any optimizer, autograd runs through the 15 steps.
- ``projunn``: the parameter is orthogonal, W = q_k(parameter); ``ProjUNN`` keeps it so, with the gradient at q_k.
- ``hadamard``: W = diag(sign u) H/√n, of one bit and exactly orthogonal; ``bits`` are those of U (HadamRNN).

``optimizers`` returns what trains either. With ``bits=None`` nothing is rounded: an orthogonal net (ORNN).

Sources: QORNN (arXiv 2402.04012), HadamRNN (arXiv 2502.00047). modReLU: Arjovsky et al. 2016 (arXiv 1511.06464).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import OptionError
from ..kernels.activation import modrelu
from ..kernels.recurrence import recurrence
from ..kernels.walsh_recurrence import walsh_recurrence
from .bjorck import Bjorck
from .projunn import RECURRENT_DIVISOR, ProjUNN
from .quantizers import Quantizer
from .signed_hadamard import SignedHadamard

__all__ = ["ACTIVATIONS", "TRAININGS", "ORNNConfig", "OrthogonalRNN", "modrelu", "optimizers"]

TRAININGS = ("bjorck", "projunn", "hadamard")
ACTIVATIONS = ("relu", "modrelu")


@dataclass(frozen=True)
class ORNNConfig:
    """Sizes and choices of an ``OrthogonalRNN``.

    Attributes:
        inputs: features of x_t.
        hidden: n, the size of h.
        outputs: features of the output.
        bits: of W and U, 2..16; None leaves both as they are.
        training: ``"bjorck"``, ``"projunn"`` or ``"hadamard"``, which needs a power of two for ``hidden``.
        activation: ``"relu"`` or ``"modrelu"``.
        range: of the quantisers, ``"minmax"``, ``"mse"``, ``"lsq"`` or ``"pact"``.
        per_channel: a range for each row of W; U always has one, because its range is absorbed into h.
        every_step: an output for every step, not for the last one only.
    """

    inputs: int
    hidden: int
    outputs: int
    bits: int | None = None
    training: str = "bjorck"
    activation: str = "relu"
    range: str = "minmax"
    per_channel: bool = False
    every_step: bool = False

    def __post_init__(self) -> None:
        if min(self.inputs, self.hidden, self.outputs) < 1:
            raise OptionError(
                "ORNNConfig: sizes must be at least 1, got "
                f"inputs={self.inputs}, hidden={self.hidden}, outputs={self.outputs}"
            )
        for field, allowed in (("training", TRAININGS), ("activation", ACTIVATIONS)):
            if getattr(self, field) not in allowed:
                raise OptionError(
                    f"ORNNConfig: {field} must be one of {', '.join(allowed)}, got {getattr(self, field)!r}"
                )


class OrthogonalRNN(nn.Module):
    """The net of one layer; its matrices are read once a forward, so that all steps use one rounding of them.

    Attributes:
        recurrent: W [n, n], as it is used (parametrized).
        input: U [n, i], as it is used.
        output: V and b.
        threshold: modReLU's bias [n], or None.

    Args:
        config: sizes and choices.

    W starts as a random orthogonal matrix, U with Glorot's normal values.
    """

    recurrent: Tensor
    input: Tensor

    def __init__(self, config: ORNNConfig) -> None:
        super().__init__()
        self.config = config
        n = config.hidden
        self.recurrent = nn.Parameter(nn.init.orthogonal_(torch.empty(n, n)))
        self.input = nn.Parameter(nn.init.xavier_normal_(torch.empty(n, config.inputs)))
        self.output = nn.Linear(n, config.outputs)
        self.threshold = nn.Parameter(torch.zeros(n)) if config.activation == "modrelu" else None
        start, entry = self.recurrent.detach().clone(), self.input.detach().clone()
        if config.training == "bjorck":
            parametrize.register_parametrization(self, "recurrent", Bjorck((n, n)))
        elif config.training == "hadamard":
            parametrize.register_parametrization(self, "recurrent", SignedHadamard(n))
            nn.init.uniform_(self.recurrent_parameter(), -1, 1)
        if config.bits is not None and config.training != "hadamard":
            quantizer = Quantizer(start, config.bits, config.range, config.per_channel)
            parametrize.register_parametrization(self, "recurrent", quantizer)
        if config.bits is not None:
            parametrize.register_parametrization(self, "input", Quantizer(entry, config.bits, config.range))

    def states(self, x: Tensor) -> Tensor:
        """h_1 .. h_T as [T, batch, n], from x [batch, T, i] and h_0 = 0.

        Raises:
            OptionError: x is not [batch, T, i], or has no step.
        """
        if x.ndim != 3 or x.shape[2] != self.config.inputs:
            raise OptionError(
                f"OrthogonalRNN: x must be [batch, steps, {self.config.inputs}], got shape {tuple(x.shape)}"
            )
        if x.shape[1] == 0:
            raise OptionError("OrthogonalRNN: x has no steps; its second axis must not be empty")
        driven = x.transpose(0, 1) @ self.input.mT  # the inputs of all steps in one product
        initial = driven.new_zeros(x.shape[0], self.config.hidden)
        activation = (self.threshold, self.config.activation)
        if self.config.training == "hadamard":
            parametrization: Any = self.parametrizations["recurrent"][0]  # type: ignore[index]
            return walsh_recurrence(driven, parametrization.signs(self.recurrent_parameter()), initial, *activation)
        return recurrence(driven, self.recurrent, initial, *activation)

    def forward(self, x: Tensor) -> Tensor:
        """x [batch, T, i] → [batch, o] of the last step, or [batch, T, o] with ``every_step``.

        Raises:
            OptionError: x is not [batch, T, i], or has no step.
        """
        states = self.states(x)
        made: Tensor = self.output(states.transpose(0, 1) if self.config.every_step else states[-1])
        return made

    def recurrent_parameter(self) -> nn.Parameter:
        """The parameter behind W: latent for ``bjorck``, orthogonal for ``projunn``, u for ``hadamard``."""
        held = self.recurrent
        if parametrize.is_parametrized(self, "recurrent"):
            held = self.parametrizations["recurrent"].original  # type: ignore[index, union-attr]
        assert isinstance(held, nn.Parameter)
        return held


def optimizers(
    model: OrthogonalRNN, lr: float, variant: str = "D", alpha: float = 0.99, divisor: float = RECURRENT_DIVISOR
) -> list[torch.optim.Optimizer]:
    """What trains that net: Adam for all of it, or Adam and ``ProjUNN`` for the recurrent parameter.

    Args:
        lr: of everything but the recurrent parameter of ``projunn``, for which it is divided by ``divisor``.
        variant: of ``ProjUNN``, as are ``alpha`` and ``divisor``; they matter for ``projunn`` only.

    Returns:
        One or two; step and clear all of them.
    """
    if model.config.training != "projunn":
        return [torch.optim.Adam(model.parameters(), lr=lr)]
    recurrent = model.recurrent_parameter()
    others = [parameter for parameter in model.parameters() if parameter is not recurrent]
    return [
        torch.optim.Adam(others, lr=lr),
        ProjUNN([recurrent], lr=lr, variant=variant, alpha=alpha, divisor=divisor),
    ]
