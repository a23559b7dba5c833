"""walsh_recurrence_backward: the gradient of the sums of ``walsh_recurrence``, and of its signs, row by row.

g_z[t] = σ'(h_t) ⊙ (g[t] + H_d (s ⊙ g_z[t+1])/√d),  g_z[T] = 0
g_s[b] = Σ_t g_z[t, b] ⊙ (H_d h_{t−1})/√d
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import recurrence_backward
from .library import Kernel, register
from .traffic import Expression, Traffic
from .walsh import sylvester

__all__ = ["KERNEL", "NAME", "cpu", "fake", "matrix", "native", "on_additions", "reference"]

NAME = "walsh_recurrence_backward"
SCHEMA = "(Tensor gradient, Tensor signs, Tensor states, Tensor initial, str activation) -> (Tensor, Tensor)"


def matrix(signs: Tensor) -> Tensor:
    """W [d, d] = diag(s) H_d/√d."""
    return signs[:, None] * sylvester(len(signs), signs.device, signs.dtype) / math.sqrt(len(signs))


FEWEST_UNITS = 256
"""Below, a matrix product of the whole batch is faster than transforms row by row (measured with 64 units, AVX512)."""


def on_additions(states: Tensor) -> bool:
    """Whether CPU tensors are transformed; others are multiplied with W."""
    return states.dtype == torch.float32 and states.shape[2] >= FEWEST_UNITS and states.numel() > 0


def reference(
    gradient: Tensor, signs: Tensor, states: Tensor, initial: Tensor, activation: str
) -> tuple[Tensor, Tensor]:
    """The formulas of the module's docstring in float64: [T, B, d] and [B, d]."""
    return cpu(gradient.double(), signs.double(), states.double(), initial.double(), activation)


def cpu(gradient: Tensor, signs: Tensor, states: Tensor, initial: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """The operator in functional PyTorch, by products; on any device."""
    return _with(recurrence_backward.cpu(gradient, matrix(signs), states, activation), states, initial)


def _with(sums: Tensor, states: Tensor, initial: Tensor) -> tuple[Tensor, Tensor]:
    """g_z, and g_s made of it."""
    before = torch.cat([initial[None], states[:-1]])
    order = initial.shape[1]
    transformed = before @ sylvester(order, initial.device, initial.dtype) / math.sqrt(order)
    return sums, (sums * transformed).sum(0)


def native(gradient: Tensor, signs: Tensor, states: Tensor, initial: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """The operator on CPU tensors.

    Raises:
        KernelError: there is no working C++ compiler.
    """
    if not on_additions(states):
        return _with(recurrence_backward.steps(gradient, matrix(signs), states, activation), states, initial)
    from . import cpp_walsh_recurrence

    scaled = signs / math.sqrt(len(signs))
    gradient, states, initial = gradient.contiguous(), states.contiguous(), initial.contiguous()
    sums, of_rows = cpp_walsh_recurrence.backward(gradient, scaled.contiguous(), states, initial, activation)
    return sums, of_rows / math.sqrt(len(signs))


def cuda(gradient: Tensor, signs: Tensor, states: Tensor, initial: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """The operator on CUDA tensors.

    Raises:
        KernelError: the kernel does not compile or launch.
    """
    return _with(recurrence_backward.cuda(gradient, matrix(signs), states, activation), states, initial)


def fake(gradient: Tensor, signs: Tensor, states: Tensor, initial: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of the results."""
    return tuple(torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (states, initial))  # type: ignore[return-value]


def traffic(steps: Expression, batch: Expression, hidden: int, itemsize: int) -> Traffic:
    """Gradients and states read, sums written; two transforms of every value."""
    values = steps * batch * hidden
    return Traffic(NAME, 2 * values * itemsize, values * itemsize, values * (2 * hidden.bit_length() + 4), "vector")


KERNEL = register(Kernel(NAME, SCHEMA, reference, cpu, fake, traffic), cuda=cuda, native=native)
