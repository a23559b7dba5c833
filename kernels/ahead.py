"""Compiling the Triton kernels of a graph in threads, while Inductor is still busy with the rest of it.

A kernel compiled when it is first launched would keep the first step waiting, one kernel after the other. Here a call
is made with fake tensors: the launcher decides everything as usual, down to ``submit``, which gets what the compiler
must be asked. Triton compiles outside Python's lock most of the time. Who launches a kernel that is not there waits for
all that was submitted.

A compilation that fails here fails again, and is reported, where the kernel is launched.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from hadamard_fx import compat

from .library import Kernel

__all__ = ["prepare", "submit", "wait"]

_SUBMITTED: dict[Any, concurrent.futures.Future[None]] = {}


def prepare(calls: Iterable[tuple[Kernel, tuple[Any, ...]]]) -> None:
    """Start to compile what the calls need.

    Args:
        calls: kernels with their arguments; tensors are fake CUDA tensors of known sizes, others are passed over.
    """
    for kernel, arguments in calls:
        tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
        static = all(isinstance(extent, int) for tensor in tensors for extent in (*tensor.shape, *tensor.stride()))
        if kernel.cuda is None or not static or any(tensor.device.type != "cuda" for tensor in tensors):
            continue
        # A launcher refuses some calls, at any size; it will refuse the real one as well.
        with compat.fresh_fake_mode(tensors), contextlib.suppress(Exception):
            kernel.cuda(*arguments)


def submit(kernel: Any, arguments: tuple[Any, ...], options: Mapping[str, int], device: torch.device) -> None:
    """Compile, in a thread, the specialisation of a ``triton.jit`` kernel that a launch will need.

    Args:
        kernel: the kernel.
        arguments: of the launch, fake tensors among them; the real ones are taken to start at multiples of 16 bytes.
        options: Triton's, ``num_warps`` for instance.
        device: CUDA device of the launch.
    """
    typed = tuple(a.dtype if isinstance(a, torch.Tensor) else a for a in arguments)
    key = (id(kernel), tuple(map(_specialised, typed)), tuple(options.items()), device.index)

    def compilation() -> None:
        with contextlib.suppress(Exception), torch.cuda.device(device):
            kernel.warmup(*typed, grid=(1,), **options)

    if key not in _SUBMITTED:
        _SUBMITTED[key] = _pool().submit(compilation)


def wait() -> None:
    """Return when all that was submitted is compiled."""
    concurrent.futures.wait(list(_SUBMITTED.values()))


def _specialised(argument: Any) -> Any:
    """What Triton sees of an argument: numbers that it treats alike are compiled once."""
    if isinstance(argument, int) and not isinstance(argument, bool):
        return argument if abs(argument) <= 512 else (argument % 16 == 0, abs(argument) < 2**31)
    return argument


@functools.cache
def _pool() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1), "hadamard-compile")
