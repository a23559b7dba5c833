"""FastRNN and FastGRNN: small recurrent cells for small devices, as baselines (Kusupati et al. 2018, arXiv 1901.02358).

    FastRNN    c_t = tanh(U x_t + W h_{t−1} + b),   h_t = α c_t + β h_{t−1}

    FastGRNN   z_t = σ(U x_t + W h_{t−1} + b_z),    c_t = tanh(U x_t + W h_{t−1} + b_h)
               h_t = (ζ (1 − z_t) + ν) ⊙ c_t + z_t ⊙ h_{t−1}

α, β, ζ and ν are single numbers from 0 to 1, sigmoids of what is trained. The gated cell has one pair of matrices for
both of its sums. Low rank and sparsity, the papers' further ways to make it small, are left out here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["FastGRNN", "FastRNN"]


class _Cell(nn.Module):
    """U and W, and the loop over the steps: [batch, T, i] → [batch, T, h]."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, hidden)
        self.recurrent = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h, states = x.new_zeros(x.shape[0], self.recurrent.in_features), []
        for driven in self.input(x).unbind(1):
            h = self.step(driven + self.recurrent(h), h)
            states.append(h)
        return torch.stack(states, 1)

    def step(self, sums: Tensor, h: Tensor) -> Tensor:
        """h_t [batch, h] from U x_t + W h_{t−1} + b and h_{t−1}."""
        raise NotImplementedError


class FastRNN(_Cell):
    """α starts at 0.047 and β at 0.953: little new at each step, so that gradients live long."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden)
        self.alpha = nn.Parameter(torch.tensor(-3.0))
        self.beta = nn.Parameter(torch.tensor(3.0))

    def step(self, sums: Tensor, h: Tensor) -> Tensor:
        return self.alpha.sigmoid() * sums.tanh() + self.beta.sigmoid() * h


class FastGRNN(_Cell):
    """b_h is the bias of U; b_z starts at 1, so that the gate keeps."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__(inputs, hidden)
        self.gate_bias = nn.Parameter(torch.ones(hidden))
        self.zeta = nn.Parameter(torch.tensor(1.0))
        self.nu = nn.Parameter(torch.tensor(-4.0))

    def step(self, sums: Tensor, h: Tensor) -> Tensor:
        gate = (sums - self.input.bias + self.gate_bias).sigmoid()
        return (self.zeta.sigmoid() * (1 - gate) + self.nu.sigmoid()) * sums.tanh() + gate * h
