"""The launchers of the Triton kernels behind recurrence and its backward; see ``triton_recurrence_kernel.py``."""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
from torch import Tensor

from .activation import ACTIVATIONS
from .library import failure
from .triton_launch import Launch
from .triton_recurrence_kernel import IDENTITY, MODRELU, RELU, TANH, _backward_kernel, _forward_kernel

__all__ = ["recurrence", "recurrence_backward"]

CODES = dict(zip(ACTIVATIONS, (RELU, MODRELU, TANH, IDENTITY), strict=True))
PIECE = 2**15
"""Bytes of W that are in flight at a time, twice: devices have from 99 KiB of shared memory."""

ROWS = 16
"""Of the batch, for one program: the smallest left operand of a product."""


def recurrence(driven: Tensor, weight: Tensor, initial: Tensor, threshold: Tensor | None, activation: str) -> Tensor:
    """The operator on CUDA tensors.

    Raises:
        KernelError: the kernel does not compile or launch.
    """
    driven, weight, initial = driven.contiguous(), weight.contiguous(), initial.contiguous()
    states = torch.empty_like(driven)
    if not states.numel():
        return states
    launch = _plan(_forward_kernel, *driven.shape, driven.dtype, activation, _precision(driven.dtype))
    c = initial if threshold is None else threshold.contiguous()
    _run("recurrence", launch, driven, weight, initial, c, states)
    return states


def recurrence_backward(gradient: Tensor, weight: Tensor, states: Tensor, activation: str) -> Tensor:
    """The operator on CUDA tensors.

    Raises:
        KernelError: the kernel does not compile or launch.
    """
    gradient, weight, states = gradient.contiguous(), weight.contiguous(), states.contiguous()
    sums = torch.empty_like(states)
    if not sums.numel():
        return sums
    launch = _plan(_backward_kernel, *states.shape, states.dtype, activation, _precision(states.dtype))
    _run("recurrence_backward", launch, gradient, weight, states, sums)
    return sums


def _run(name: str, launch: Launch, *tensors: Tensor) -> None:
    try:
        launch(*tensors)
    except Exception as error:
        shape = {"T": tensors[0].shape[0], "B": tensors[0].shape[1], "n": tensors[0].shape[2]}
        raise failure(name, error, **shape, dtype=tensors[0].dtype) from error


def _precision(dtype: torch.dtype) -> str:
    """float32 as the user lets matrix products be computed (``torch.set_float32_matmul_precision``)."""
    return "tf32" if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest" else "ieee"


@functools.lru_cache(maxsize=1024)
def _plan(
    kernel: Any, steps: int, batch: int, hidden: int, dtype: torch.dtype, activation: str, precision: str
) -> Launch:
    """Tile sizes of a shape, not tuned: two pieces of W, on their way from the L2 cache, take 64 KiB at most."""
    width = max(16, triton.next_power_of_2(hidden))
    depth = min(width, PIECE // (width * dtype.itemsize))
    values = (steps, batch, hidden, CODES[activation], ROWS, width, depth, precision)
    return Launch(kernel, -(-batch // ROWS), values, {"num_warps": 4 if width <= 128 else 8})
