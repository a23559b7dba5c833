"""After training: states of a few bits too, and a recurrence of integers alone.

With U = (α_U/2^{k−1}) C_U the net runs on h' = h/α_U, so that C_U needs no multiplier and V takes α_U up. A power of
two scales h' (calibrated max|h'| over q_max, rounded up), another one scales the inputs; α_W becomes a fixed-point
number m_W/2^f for the tensor or for each row. In units of 2^−E one step is then

    acc = (m_W ⊙ C_W c_h) << (E − E_W)  +  (C_U c_x) << (E − E_U)
    c_h = clip(round(σ(acc) / 2^{E − e_h}), −q_max, q_max)

with E_W = f + (k−1) + e_h, E_U = (k−1) + e_x and E the larger of both. ``integer_states`` computes this with int64 and
shifts, ``simulated_states`` the same net in float64 with rounded values. They agree bit for bit: all values are
multiples of 2^−E below 2^53 of them, which float64 adds and multiplies exactly.

Source: QORNN (arXiv 2402.04012), post-training quantisation of the activations; 12 bits there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from ..errors import OptionError
from ..kernels.activation import modrelu
from .quantizers import Quantizer, integers
from .recurrent import OrthogonalRNN
from .signed_hadamard import SignedHadamard

__all__ = ["MULTIPLIER_BITS", "IntegerRNN", "quantize_activations"]

MULTIPLIER_BITS = 15
"""Of m_W: α_W is met with a relative error below 2^−15, far below the rounding of the states."""


@dataclass(frozen=True)
class IntegerRNN:
    """A net whose recurrence is made of integers; ``quantize_activations`` makes it.

    Attributes:
        recurrent: C_W [n, n], int64 (k bits).
        input: C_U [n, i], int64 (k bits).
        multiplier: m_W, int64, [n].
        multiplier_exponent: f.
        threshold: modReLU's bias over α_U, in units of 2^−E, int64 [n]; None for ReLU.
        weight_bits: k.
        bits: of the states, sign included.
        state_exponent: e_h; the states stand for c_h/2^{e_h}.
        input_exponent: e_x; the inputs are rounded to multiples of 2^{−e_x}.
        input_bound: the largest |c_x|, twice that of the calibration; larger inputs are clipped, so no sum overflows.
        output: α_U·V [o, n], float64.
        bias: b [o], float64.
        every_step: an output for every step.
    """

    recurrent: Tensor
    input: Tensor
    multiplier: Tensor
    multiplier_exponent: int
    threshold: Tensor | None
    weight_bits: int
    bits: int
    state_exponent: int
    input_exponent: int
    input_bound: int
    output: Tensor
    bias: Tensor
    every_step: bool = False

    @cached_property
    def exponents(self) -> tuple[int, int]:
        """(E_W, E_U)."""
        k = self.weight_bits - 1
        return self.multiplier_exponent + k + self.state_exponent, k + self.input_exponent

    @property
    def bound(self) -> int:
        """q_max of the states."""
        return int(2 ** (self.bits - 1)) - 1

    def _input_codes(self, x: Tensor) -> Tensor:
        """round(x·2^{e_x}), clipped, int64."""
        codes = torch.round(x.double() * 2.0**self.input_exponent)
        return codes.clamp(-self.input_bound, self.input_bound).long()

    def integer_states(self, x: Tensor) -> Tensor:
        """c_h [batch, T, n] as int64, from x [batch, T, i]: after the rounding of x nothing is floating."""
        e_w, e_u = self.exponents
        e = max(e_w, e_u)
        codes = self._input_codes(x)
        h = torch.zeros(x.shape[0], len(self.recurrent), dtype=torch.int64, device=x.device)
        found = []
        for step in codes.unbind(1):
            acc = (self.multiplier * (h @ self.recurrent.T)) << (e - e_w)
            acc = acc + ((step @ self.input.T) << (e - e_u))
            if self.threshold is None:
                acc = acc.clamp_min(0)
            else:
                acc = acc.sign() * (acc.abs() + self.threshold).clamp_min(0)
            h = _shift_half_even(acc, e - self.state_exponent).clamp(-self.bound, self.bound)
            found.append(h)
        return torch.stack(found, 1)

    def simulated_states(self, x: Tensor) -> Tensor:
        """h'[batch, T, n] as float64: the same net in floating point, with rounded weights, inputs and states."""
        unit, grid = 2.0 ** -(self.weight_bits - 1), 2.0**-self.state_exponent
        scale = self.multiplier.double() * 2.0**-self.multiplier_exponent
        w, u = scale[:, None] * unit * self.recurrent.double(), unit * self.input.double()
        h = torch.zeros(x.shape[0], len(w), dtype=torch.float64, device=x.device)
        found = []
        for step in (self._input_codes(x).double() * 2.0**-self.input_exponent).unbind(1):
            z = h @ w.T + step @ u.T
            if self.threshold is None:
                z = torch.relu(z)
            else:
                z = modrelu(z, self.threshold.double() * 2.0 ** -max(self.exponents))
            h = torch.round(z / grid).clamp(-self.bound, self.bound) * grid
            found.append(h)
        return torch.stack(found, 1)

    def __call__(self, x: Tensor) -> Tensor:
        """x [batch, T, i] → [batch, o] or [batch, T, o], float64; only V is applied in floating point."""
        codes = self.integer_states(x)
        codes = codes if self.every_step else codes[:, -1]
        return (codes.double() * 2.0**-self.state_exponent) @ self.output.T + self.bias


def _shift_half_even(value: Tensor, places: int) -> Tensor:
    """value / 2^places, rounded half to even, with integers only."""
    if places <= 0:
        return value << -places
    down = value >> places  # arithmetic: towards minus infinity
    rest, half = value - (down << places), 1 << (places - 1)
    up = (rest > half) | ((rest == half) & (down & 1 == 1))
    return down + up.long()


def _codes(model: OrthogonalRNN, name: str) -> tuple[Tensor, Tensor, int]:
    """(integers as int64, α as float64, k) of W or U, from what stands before their quantiser."""
    if parametrize.is_parametrized(model, name):
        chain: Any = model.parametrizations[name]  # type: ignore[index]
        weight = chain.original
        for part in chain:
            if isinstance(part, Quantizer):
                alpha = part.alpha(weight)
                return integers(weight, alpha, part.bits).long(), alpha.double(), part.bits
            if isinstance(part, SignedHadamard):
                k = model.config.bits or 0  # as if ±1 were numbers of as many bits as those of U
                alpha = torch.tensor(2.0 ** (k - 1) / math.sqrt(part.size), dtype=torch.float64)
                if k:
                    return part.codes(weight).long(), alpha, k
            weight = part(weight)
    raise OptionError(f"quantize_activations: {name} is not quantised; make the net with bits=2..16")


@torch.no_grad()
def quantize_activations(
    model: OrthogonalRNN, calibration: Tensor, bits: int = 12, input_exponent: int = 8
) -> IntegerRNN:
    """Calibrate max|h| and round the states to ``bits``.

    Args:
        model: trained, with ``bits`` of its own for the weights; put into evaluation mode.
        calibration: x [batch, T, i].
        bits: of the states, 2..16; 6, 8, 10 and 12 in the paper.
        input_exponent: e_x: inputs are rounded to multiples of 2^{−e_x}.

    Raises:
        OptionError: the weights are not quantised, bits or exponent out of range, or sizes for which 2^53 is too small.
    """
    if not 2 <= bits <= 16 or not 0 <= input_exponent <= 16:
        raise OptionError(
            "quantize_activations: bits must be from 2 to 16 and input_exponent from 0 to 16, got "
            f"{bits=}, {input_exponent=}"
        )
    model.eval()
    w, alpha_w, k = _codes(model, "recurrent")
    u, alpha_u, _ = _codes(model, "input")
    largest = float(model.states(calibration).abs().max()) / float(alpha_u)
    # Rounded up to a power of two, so that the largest state is not clipped; a net of zeros takes any scale.
    state_exponent = -math.ceil(math.log2(max(largest, 2.0**-16) / (2 ** (bits - 1) - 1)))
    fraction = MULTIPLIER_BITS - math.ceil(math.log2(float(alpha_w.max())))
    multiplier = torch.round(alpha_w * 2.0**fraction).long().reshape(-1).expand(len(w)).contiguous()
    e_w, e_u = fraction + k - 1 + state_exponent, k - 1 + input_exponent
    e = max(e_w, e_u)
    input_bound = 2 * int((calibration.double().abs().max() * 2.0**input_exponent).ceil())
    threshold = None if model.threshold is None else torch.round(model.threshold.double() / alpha_u * 2.0**e).long()
    peak = (w.abs().sum(1).double() * multiplier).max() * 2.0 ** (bits - 1 + e - e_w)
    peak = peak + u.abs().sum(1).max() * float(input_bound) * 2.0 ** (e - e_u)
    if peak + (0 if threshold is None else threshold.abs().max()) >= 2.0**53:
        raise OptionError("quantize_activations: the sums would need more than 53 bits; ask for fewer bits")
    return IntegerRNN(
        recurrent=w,
        input=u,
        multiplier=multiplier,
        multiplier_exponent=fraction,
        threshold=threshold,
        weight_bits=k,
        bits=bits,
        state_exponent=state_exponent,
        input_exponent=input_exponent,
        input_bound=input_bound,
        output=alpha_u * model.output.weight.double(),
        bias=model.output.bias.double(),
        every_step=model.config.every_step,
    )
