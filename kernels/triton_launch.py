"""Launching a Triton kernel again: past Triton's binder, whose Python costs more than the launch.

A training step calls each operator hundreds of times with a few shapes. What a shape decides is decided once: all but
the tensors of a launch are the attributes of a ``Launch``. On a call it takes their addresses and goes straight to the
compiled kernel.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hadamard_fx import compat

from . import ahead, workspace
from .replay import launched

__all__ = ["Launch"]

_LOG = logging.getLogger(__package__)


class Launch:
    """One ``triton.jit`` kernel with everything but its tensors, which are its first parameters.

    Args:
        kernel: the kernel. It must not specialise on the alignment of its last ``loose`` tensors.
        programs: size of the grid, which has one axis.
        values: numbers and constants, the parameters behind the tensors.
        options: Triton's, ``num_warps`` for instance.
        loose: how many tensors, the last ones, may start anywhere.
        descriptors: the kernel makes tensor descriptors, which need memory.
    """

    def __init__(
        self,
        kernel: Any,
        programs: int,
        values: tuple[Any, ...],
        options: Mapping[str, Any],
        loose: int = 0,
        descriptors: bool = False,
    ) -> None:
        self.kernel = kernel
        self.grid = (programs, 1, 1)
        self.values = values
        self.options = dict(options)
        self.loose = loose
        self.lend = _lend_descriptors if descriptors else None
        self.compiled: dict[int, Any] = {}
        """Triton's compiled kernel for each device."""

    def __call__(self, *tensors: Tensor) -> None:
        """Launch on the current stream of the tensors' device. Their dtypes are the same in every call."""
        if compat.is_fake(tensors[0]):
            ahead.submit(self.kernel, (*tensors, *self.values), self.options, tensors[0].device)
            return
        launched(self, tensors)
        if self.lend is not None:
            self.lend()
        addresses = [tensor.data_ptr() for tensor in tensors]
        together = 0
        for address in addresses[: len(addresses) - self.loose]:
            together |= address
        device = tensors[0].get_device()
        made = self.compiled.get(device)
        if made is None or together % 16 or device != compat.current_device():
            self._through_triton(tensors, keep=together % 16 == 0)
        else:
            made[self.grid](*addresses, *self.values)

    def again(self, device: int) -> Callable[..., None] | None:
        """The launch on a stream and addresses, multiples of 16 but for the last ``loose``; None before the first."""
        made, values, lend = self.compiled.get(device), self.values, self.lend
        if made is None:
            return None
        run = compat.triton_launcher(made, self.grid)

        def launch(stream: int, *addresses: int) -> None:
            if lend is not None:
                lend()
            run(stream, *addresses, *values)

        return launch

    def _through_triton(self, tensors: tuple[Tensor, ...], keep: bool) -> None:
        if not tensors[0].is_cuda:  # the interpreter
            self.kernel[self.grid](*tensors, *self.values, **self.options)
            return
        device = tensors[0].device
        ahead.cache_directory(device)
        if keep:
            ahead.wait(self.kernel, (*tensors, *self.values), self.options, device)
        begin = time.perf_counter()
        with torch.cuda.device(device):
            made = self.kernel[self.grid](*tensors, *self.values, **self.options)
        _LOG.debug("%s first launched, %.3f s", self.kernel.fn.__name__, time.perf_counter() - begin)
        if keep:
            ahead.compare(self.kernel, (*tensors, *self.values), self.options, device, made)
            self.compiled[tensors[0].get_device()] = made


def _lend_descriptors() -> None:
    """Give Triton memory for descriptors. It asks per thread, and the backward has a thread of its own."""
    import triton

    triton.set_allocator(workspace.descriptors)
