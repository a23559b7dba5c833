"""walsh_recurrence: a recurrence whose matrix is W = diag(s) H_d/√d, by fast Walsh–Hadamard transforms (HadamRNN).

    states[t] = σ(s ⊙ (H_d states[t−1])/√d + driven[t]),  states[−1] = initial,  s = ±1

A step costs d log₂ d additions for each row of the batch in place of d² multiplications. The gradient of s needs
H_d states[t−1] again: ``walsh_recurrence_backward`` transforms it beside its own sums.

    g_s = Σ_t Σ_b g_z[t, b] ⊙ (H_d states[t−1, b])/√d,   g_initial = g_z[0] W

On CPUs in float32, from 256 units, this is C++ (``cpp_walsh_recurrence.py``); fewer units, other dtypes, and CUDA
devices, whose matrix units outrun additions at these sizes, multiply with W as ``recurrence`` does.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hadamard_fx.errors import OptionError

from . import recurrence, walsh_recurrence_backward
from .activation import check_activation
from .library import Kernel, differentiate, register
from .recurrence_backward import check_shapes
from .traffic import Expression, Traffic
from .walsh_recurrence_backward import matrix, on_additions

__all__ = ["KERNEL", "NAME", "cpu", "fake", "native", "reference", "traffic", "walsh_recurrence"]

NAME = "walsh_recurrence"
SCHEMA = "(Tensor driven, Tensor signs, Tensor initial, Tensor? threshold, str activation) -> Tensor"


def walsh_recurrence(
    driven: Tensor, signs: Tensor, initial: Tensor, threshold: Tensor | None = None, activation: str = "relu"
) -> Tensor:
    """h_1 .. h_T, differentiable in all tensors.

    Args:
        driven: d [T, B, d], T ≥ 1, d a power of two; its dtype is that of the computation.
        signs: ±1 [d]; other values scale the rows of H.
        initial: h_0 [B, d].
        threshold, activation: as for ``recurrence``.

    Returns:
        [T, B, d], contiguous, of the dtype of ``driven``.

    Raises:
        OptionError: shapes that do not fit, no step, a size that is no power of two, or an unknown activation.
    """
    check_activation(activation, threshold)
    if signs.ndim != 1 or len(signs) < 2 or len(signs) & (len(signs) - 1):
        raise OptionError(f"walsh_recurrence: signs must be [d], d a power of two from 2, got {tuple(signs.shape)}")
    check_shapes(driven, signs.expand(len(signs), -1), initial)
    signs, initial = signs.to(driven.dtype), initial.to(driven.dtype)
    threshold = None if threshold is None else threshold.to(driven.dtype)
    made: Tensor = KERNEL.op(driven, signs, initial, threshold, activation)
    return made


def reference(
    driven: Tensor, signs: Tensor, initial: Tensor, threshold: Tensor | None, activation: str = "relu"
) -> Tensor:
    """The formula of the module's docstring in float64: [T, B, d]."""
    return recurrence.reference(driven, matrix(signs.double()), initial, threshold, activation)


def cpu(driven: Tensor, signs: Tensor, initial: Tensor, threshold: Tensor | None, activation: str) -> Tensor:
    """The operator in functional PyTorch, by products with W; on any device."""
    return recurrence.cpu(driven, matrix(signs), initial, threshold, activation)


def native(driven: Tensor, signs: Tensor, initial: Tensor, threshold: Tensor | None, activation: str) -> Tensor:
    """The operator on CPU tensors.

    Raises:
        KernelError: there is no working C++ compiler.
    """
    if not on_additions(driven):
        return recurrence.steps(driven, matrix(signs), initial, threshold, activation)
    from . import cpp_walsh_recurrence

    c = None if threshold is None else threshold.contiguous()
    scaled = signs / math.sqrt(len(signs))
    return cpp_walsh_recurrence.forward(driven.contiguous(), scaled.contiguous(), initial.contiguous(), c, activation)


def cuda(driven: Tensor, signs: Tensor, initial: Tensor, threshold: Tensor | None, activation: str) -> Tensor:
    """The operator on CUDA tensors.

    Raises:
        KernelError: the kernel does not compile or launch.
    """
    return recurrence.cuda(driven, matrix(signs), initial, threshold, activation)


def fake(driven: Tensor, signs: Tensor, initial: Tensor, threshold: Tensor | None, activation: str) -> Tensor:
    """Shape and dtype of the result."""
    return torch.empty(driven.shape, dtype=driven.dtype, device=driven.device)


def traffic(steps: Expression, batch: Expression, hidden: int, itemsize: int) -> Traffic:
    """Every step's sums read and its state written; log₂ d additions, and two more operations, for each value."""
    values = steps * batch * hidden
    return Traffic(NAME, values * itemsize, values * itemsize, values * (hidden.bit_length() + 1), "vector")


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, signs, initial, _, ctx.activation = inputs
    ctx.save_for_backward(signs, initial, output)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    signs, initial, states = ctx.saved_tensors
    _, _, to_initial, to_threshold, _ = ctx.needs_input_grad
    backward = walsh_recurrence_backward.KERNEL.op
    sums, of_rows = backward(gradient, signs, states, initial, ctx.activation)
    found: list[Tensor | None] = [sums, of_rows.sum(0), None, None, None]
    if to_initial:
        found[2] = sums[0] @ matrix(signs)
    if to_threshold:
        found[3] = (sums * states.sign()).sum((0, 1))
    return tuple(found)


KERNEL = register(Kernel(NAME, SCHEMA, reference, cpu, fake, traffic), cuda=cuda, native=native)
differentiate(KERNEL, _backward, _setup)
