"""recurrence_backward: the gradient of all sums of a recurrence, from the last step to the first.

    g_z[t] = σ'(h_t) ⊙ (g[t] + g_z[t+1] W),  g_z[T] = 0

g [T, B, n] is the gradient of the states from outside of the recurrence. σ' is known from h_t, see ``activation.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hadamard_fx.errors import OptionError

from .activation import through
from .library import Kernel, register, triton_bodies
from .traffic import Expression, Traffic

__all__ = [
    "KERNEL",
    "LARGEST",
    "NAME",
    "check_shapes",
    "cpu",
    "fake",
    "fits_one_kernel",
    "native",
    "reference",
    "steps",
]

NAME = "recurrence_backward"
SCHEMA = "(Tensor gradient, Tensor weight, Tensor states, str activation) -> Tensor"

LARGEST = 512
"""Units up to which a program holds rows of sums, and 16 rows of W in shared memory; above, a step is a launch."""

_ONE_KERNEL = (torch.float32, torch.bfloat16, torch.float16)


def check_shapes(driven: Tensor, weight: Tensor, initial: Tensor) -> None:
    """Whether d [T, B, n], W [n, n] and h_0 [B, n] belong together.

    Raises:
        OptionError: they do not, or T is 0.
    """
    shapes = f"driven {tuple(driven.shape)}, weight {tuple(weight.shape)}, initial {tuple(initial.shape)}"
    if driven.ndim != 3 or initial.ndim != 2 or weight.ndim != 2:
        raise OptionError(f"recurrence: driven must be [T, B, n], weight [n, n] and initial [B, n], got {shapes}")
    hidden = driven.shape[2]
    if tuple(weight.shape) != (hidden, hidden) or tuple(initial.shape) != tuple(driven.shape[1:]):
        raise OptionError(f"recurrence: driven [T, B, n] asks for weight [n, n] and initial [B, n], got {shapes}")
    if driven.shape[0] == 0:
        raise OptionError("recurrence: there are no steps; the first axis of driven must not be empty")


def fits_one_kernel(states: Tensor) -> bool:
    """Whether one launch runs through all steps on a CUDA device, or each step is a launch."""
    return states.shape[2] <= LARGEST and states.dtype in _ONE_KERNEL


def reference(gradient: Tensor, weight: Tensor, states: Tensor, activation: str = "relu") -> Tensor:
    """The formula of the module's docstring in float64: [T, B, n]."""
    return cpu(gradient.double(), weight.double(), states.double(), activation)


def cpu(gradient: Tensor, weight: Tensor, states: Tensor, activation: str = "relu") -> Tensor:
    """The operator in functional PyTorch."""
    found: list[Tensor] = []
    for g, h in zip(reversed(gradient.unbind(0)), reversed(states.unbind(0)), strict=True):
        found.append(through(torch.addmm(g, found[-1], weight) if found else g, h, activation))
    return torch.stack(found[::-1])


def steps(gradient: Tensor, weight: Tensor, states: Tensor, activation: str = "relu") -> Tensor:
    """The operator as one product a step; on any device."""
    sums = torch.empty(states.shape, dtype=states.dtype, device=states.device)
    last: Tensor | None = None
    for g, h, out in zip(*(reversed(t.unbind(0)) for t in (gradient, states, sums)), strict=True):
        entering = g if last is None else torch.addmm(g, last, weight)
        if activation == "relu":
            torch.ops.aten.threshold_backward.grad_input(entering, h, 0, grad_input=out)
        else:
            out.copy_(through(entering, h, activation))
        last = out
    return sums


native = steps


def cuda(gradient: Tensor, weight: Tensor, states: Tensor, activation: str = "relu") -> Tensor:
    """The operator on CUDA tensors.

    Raises:
        KernelError: the kernel does not compile or launch.
    """
    if not fits_one_kernel(states):
        return steps(gradient, weight, states, activation)
    made: Tensor = triton_bodies("recurrence").recurrence_backward(gradient, weight, states, activation)
    return made


def fake(gradient: Tensor, weight: Tensor, states: Tensor, activation: str = "relu") -> Tensor:
    """Shape and dtype of the result."""
    return torch.empty(states.shape, dtype=states.dtype, device=states.device)


def traffic(
    steps: Expression, batch: Expression, hidden: Expression, itemsize: int = 4, unit: str = "float32"
) -> Traffic:
    """Every step's gradient and state read, the gradient of its sums written."""
    one = steps * batch * hidden * itemsize
    return Traffic(NAME, 2 * one + hidden * hidden * itemsize, one, 2 * steps * batch * hidden * hidden, unit)


KERNEL = register(Kernel(NAME, SCHEMA, reference, cpu, fake, traffic), cuda=cuda, native=native)
