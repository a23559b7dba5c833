"""The nets that the recurrent examples compare: orthogonal ones of few bits, and the usual baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from examples.fast_cells import FastGRNN, FastRNN
from hadamard_fx.orthogonal.recurrent import ORNNConfig, OrthogonalRNN, optimizers

__all__ = ["Baseline", "Contender", "Rates", "parse", "recurrent_bytes"]

ORTHOGONAL = {"bjorck": "Björck", "projunn": "projUNN", "hadamard": "signed Hadamard"}
BASELINES = {"lstm": "LSTM", "gru": "GRU", "fastrnn": "FastRNN", "fastgrnn": "FastGRNN"}


class Baseline(nn.Module):
    """A usual cell of one layer with a linear output, [batch, T, i] → [batch, o] or [batch, T, o]."""

    def __init__(self, kind: str, inputs: int, hidden: int, outputs: int, every_step: bool = False) -> None:
        super().__init__()
        builtin = {"lstm": nn.LSTM, "gru": nn.GRU}
        cell = builtin[kind](inputs, hidden, batch_first=True) if kind in builtin else None
        self.cell = cell or {"fastrnn": FastRNN, "fastgrnn": FastGRNN}[kind](inputs, hidden)
        self.output = nn.Linear(hidden, outputs)
        self.every_step = every_step

    def forward(self, x: Tensor) -> Tensor:
        made = self.cell(x)
        states = made[0] if isinstance(made, tuple) else made
        result: Tensor = self.output(states if self.every_step else states[:, -1])
        return result


@dataclass(frozen=True)
class Rates:
    """Learning rates at their peak.

    Attributes:
        orthogonal: Adam's, for orthogonal nets.
        gated: Adam's, for LSTM and GRU.
        divisor: of the recurrent rate with projUNN; 32 in the paper, which trains for many more steps.
        variant: of projUNN, D or T.
        fast: Adam's, for FastRNN.
        fast_gated: Adam's, for FastGRNN.
        hadamard: Adam's, for nets with a signed Hadamard matrix, whose u must cross zero.
    """

    orthogonal: float
    gated: float
    divisor: float
    variant: str = "D"
    fast: float = 1.5e-2
    fast_gated: float = 3e-2
    hadamard: float = 1e-2


@dataclass(frozen=True)
class Contender:
    """One net of a comparison.

    Attributes:
        kind: one of ``BASELINES``, or the training of an ``OrthogonalRNN``, one of ``ORTHOGONAL``.
        bits: of W and U (of U alone for ``"hadamard"``, whose W has one); None for floating point.
    """

    kind: str
    bits: int | None = None

    @property
    def baseline(self) -> bool:
        return self.kind in BASELINES

    @property
    def name(self) -> str:
        if self.baseline:
            return BASELINES[self.kind]
        if self.kind == "hadamard":
            return "HadamRNN" if self.bits is None else f"HadamRNN, U {self.bits} bits"
        way = ORTHOGONAL[self.kind]
        return f"ORNN, {way}" if self.bits is None else f"QORNN, {way}, {self.bits} bits"

    def model(self, inputs: int, hidden: int, outputs: int, **choices: Any) -> Baseline | OrthogonalRNN:
        """The net; ``choices`` are further fields of ``ORNNConfig``. HadamRNN has modReLU always."""
        if self.baseline:
            return Baseline(self.kind, inputs, hidden, outputs, choices.get("every_step", False))
        if self.kind == "hadamard":  # with ReLU it learned 55 % of the digits, not 96 %
            choices["activation"] = "modrelu"
        return OrthogonalRNN(ORNNConfig(inputs, hidden, outputs, self.bits, self.kind, **choices))

    def optimizers(self, model: Baseline | OrthogonalRNN, rates: Rates) -> list[torch.optim.Optimizer]:
        if isinstance(model, OrthogonalRNN):
            rate = rates.hadamard if self.kind == "hadamard" else rates.orthogonal
            return optimizers(model, rate, variant=rates.variant, divisor=rates.divisor)
        rate = {"fastrnn": rates.fast, "fastgrnn": rates.fast_gated}.get(self.kind, rates.gated)
        return [torch.optim.Adam(model.parameters(), lr=rate)]


def parse(names: str) -> list[Contender]:
    """``lstm,fastrnn,bjorck,bjorck:4,hadamard:8``: kinds, with bits behind a colon where the net is orthogonal."""
    made = []
    for name in names.split(","):
        kind, _, bits = name.strip().partition(":")
        if kind not in {*BASELINES, *ORTHOGONAL} or (bits and (kind in BASELINES or not bits.isdigit())):
            raise ValueError(
                f"contender {name!r}: write one of {', '.join(BASELINES)}, or one of {', '.join(ORTHOGONAL)}, "
                "the latter with or without bits, bjorck:4"
            )
        made.append(Contender(kind, int(bits) if bits else None))
    return made


def recurrent_bytes(contender: Contender, inputs: int, hidden: int) -> float:
    """Bytes of the weights that every step reads: W and U; all parameters of a baseline's cell, in float32."""
    if contender.baseline:
        return 4.0 * sum(
            parameter.numel() for parameter in Baseline(contender.kind, inputs, hidden, 1).cell.parameters()
        )
    bits = contender.bits or 32
    recurrent = hidden if contender.kind == "hadamard" else bits * hidden * hidden  # a sign for each row of H
    return (recurrent + bits * hidden * inputs) / 8
