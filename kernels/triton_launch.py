"""Launching a Triton kernel again: past Triton's binder, whose Python costs more than the launch.

A training step launches each quantise kernel hundreds of times with the same few specialisations. The compiled kernel
of a specialisation is remembered under all that Triton specialises on: the constants, the dtypes, whether a pointer
is a multiple of 16 bytes, and whether a number is 1, a multiple of 16 or beyond 32 bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Launch"]


class Launch:
    """Launches one ``triton.jit`` kernel whose parameters are tensors, then numbers, then constants."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.compiled: dict[Any, Any] = {}

    def __call__(
        self,
        programs: int,
        tensors: tuple[Tensor, ...],
        numbers: tuple[int | float, ...],
        constants: tuple[Any, ...],
        **options: int,
    ) -> None:
        """Launch on the current device and stream.

        Args:
            programs: size of the grid, which has one axis.
            tensors, numbers, constants: the kernel's parameters, in this order.
            options: Triton's, ``num_warps`` for instance.
        """
        key = (
            constants,
            tuple(options.items()),
            tensors[0].device.index,
            *((tensor.dtype, tensor.data_ptr() % 16 == 0) for tensor in tensors),
            *((n == 1, n % 16 == 0, -(2**31) <= n < 2**31) for n in numbers if isinstance(n, int)),
        )
        compiled = self.compiled.get(key)
        if compiled is not None:
            compiled[(programs, 1, 1)](*tensors, *numbers, *constants)
            return
        made = self.kernel[(programs, 1, 1)](*tensors, *numbers, *constants, **options)
        if made is not None and torch.cuda.is_available():  # the interpreter compiles nothing
            self.compiled[key] = made
