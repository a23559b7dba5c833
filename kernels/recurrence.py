"""recurrence: all steps of h_t = σ(h_{t−1} Wᵀ + d_t) in one call, so that a graph holds one node and not T of them.

    states[t] = σ(states[t−1] Wᵀ + driven[t]),  states[−1] = initial

driven [T, B, n] is U x_t + b of all steps, one product. The gradient of the sums z, g_z, comes from
``recurrence_backward``; all else are ordinary products over the steps at once:

    g_driven = g_z,   g_W = Σ_t g_z[t]ᵀ states[t−1],   g_initial = g_z[0] W,   g_c = Σ g_z sign(h)

On CPUs a step is one matrix product into the place of its state; on CUDA devices one kernel runs through all steps, a
program for 16 rows of the batch (``triton_recurrence.py``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import recurrence_backward
from .activation import activate, check_activation
from .library import Kernel, differentiate, register, triton_bodies
from .traffic import Expression, Traffic

__all__ = ["KERNEL", "NAME", "cpu", "fake", "native", "recurrence", "reference", "steps", "traffic"]

NAME = "recurrence"
SCHEMA = "(Tensor driven, Tensor weight, Tensor initial, Tensor? threshold, str activation) -> Tensor"


def recurrence(
    driven: Tensor, weight: Tensor, initial: Tensor, threshold: Tensor | None = None, activation: str = "relu"
) -> Tensor:
    """h_1 .. h_T, differentiable in all tensors.

    Args:
        driven: d [T, B, n], T ≥ 1; its dtype is that of the computation, the other tensors are cast to it.
        weight: W [n, n].
        initial: h_0 [B, n].
        threshold: modReLU's c [n], None for others.
        activation: one of ``ACTIVATIONS``.

    Returns:
        [T, B, n], contiguous, of the dtype of ``driven``.

    Raises:
        OptionError: shapes that do not fit, no step, or an unknown activation.
    """
    check_activation(activation, threshold)
    recurrence_backward.check_shapes(driven, weight, initial)
    weight, initial = weight.to(driven.dtype), initial.to(driven.dtype)
    threshold = None if threshold is None else threshold.to(driven.dtype)
    made: Tensor = KERNEL.op(driven, weight, initial, threshold, activation)
    return made


def reference(
    driven: Tensor, weight: Tensor, initial: Tensor, threshold: Tensor | None = None, activation: str = "relu"
) -> Tensor:
    """The formula of the module's docstring in float64: [T, B, n]."""
    return cpu(
        driven.double(),
        weight.double(),
        initial.double(),
        None if threshold is None else threshold.double(),
        activation,
    )


def cpu(
    driven: Tensor, weight: Tensor, initial: Tensor, threshold: Tensor | None = None, activation: str = "relu"
) -> Tensor:
    """The operator in functional PyTorch."""
    h, found = initial, []
    for step in driven.unbind(0):
        h = activate(torch.addmm(step, h, weight.t()), activation, threshold)
        found.append(h)
    return torch.stack(found)


def steps(
    driven: Tensor, weight: Tensor, initial: Tensor, threshold: Tensor | None = None, activation: str = "relu"
) -> Tensor:
    """The operator as one product a step, each written where its state stays; on any device."""
    states = torch.empty(driven.shape, dtype=driven.dtype, device=driven.device)
    h, turned = initial, weight.t()
    for sums, h_next in zip(driven.unbind(0), states.unbind(0), strict=True):
        torch.addmm(sums, h, turned, out=h_next)
        if activation == "relu":
            h_next.relu_()
        elif activation == "tanh":
            h_next.tanh_()
        elif activation == "modrelu":
            h_next.copy_(activate(h_next, activation, threshold))
        h = h_next
    return states


native = steps


def cuda(
    driven: Tensor, weight: Tensor, initial: Tensor, threshold: Tensor | None = None, activation: str = "relu"
) -> Tensor:
    """The operator on CUDA tensors.

    Raises:
        KernelError: the kernel does not compile or launch.
    """
    if not recurrence_backward.fits_one_kernel(driven):
        return steps(driven, weight, initial, threshold, activation)
    made: Tensor = triton_bodies(NAME).recurrence(driven, weight, initial, threshold, activation)
    return made


def fake(
    driven: Tensor, weight: Tensor, initial: Tensor, threshold: Tensor | None = None, activation: str = "relu"
) -> Tensor:
    """Shape and dtype of the result."""
    return torch.empty(driven.shape, dtype=driven.dtype, device=driven.device)


def traffic(
    steps: Expression, batch: Expression, hidden: Expression, itemsize: int = 4, unit: str = "float32"
) -> Traffic:
    """Every step's sums read, its state written; W is read once from memory, and again from the caches."""
    one = steps * batch * hidden * itemsize
    read = one + (hidden * hidden + batch * hidden) * itemsize
    return Traffic(NAME, read, one, 2 * steps * batch * hidden * hidden, unit)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, weight, initial, threshold, ctx.activation = inputs
    ctx.has_threshold = threshold is not None
    ctx.save_for_backward(weight, initial, output)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    weight, initial, states = ctx.saved_tensors
    _, to_weight, to_initial, to_threshold, _ = ctx.needs_input_grad
    sums: Tensor = recurrence_backward.KERNEL.op(gradient, weight, states, ctx.activation)
    hidden = weight.shape[0]
    found: list[Tensor | None] = [sums, None, None, None, None]
    if to_weight:
        first = sums[0].t() @ initial
        rest, before = sums[1:].reshape(-1, hidden), states[:-1].reshape(-1, hidden)
        found[1] = first + rest.t() @ before
    if to_initial:
        found[2] = sums[0] @ weight
    if to_threshold:
        found[3] = (sums * states.sign()).sum((0, 1))
    return tuple(found)


KERNEL = register(Kernel(NAME, SCHEMA, reference, cpu, fake, traffic), cuda=cuda, native=native)
differentiate(KERNEL, _backward, _setup)
