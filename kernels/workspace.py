"""Device memory that kernels share from launch to launch, so that a launch neither allocates nor clears any.

Launches on one stream follow each other: one buffer per stream and purpose serves them all. It only grows, and what it
grew out of is kept, as launches in flight may still use it. While a CUDA graph is captured, memory comes from the graph
instead, which may be replayed on any stream.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from hadamard_fx import compat

from .replay import lent

__all__ = ["descriptors", "resident", "temporary", "zeros"]

_BUFFERS: dict[tuple[str, torch.dtype, int, int], Tensor] = {}
_OUTGROWN: list[Tensor] = []
_SMALLEST = 1 << 16


def zeros(count: int, like: Tensor) -> Tensor:
    """At least ``count`` int32 zeros for a launch on the current stream of ``like``'s device, which leaves zeros."""
    if compat.is_fake(like) or not like.is_cuda or torch.cuda.is_current_stream_capturing():
        made = torch.zeros(count, dtype=torch.int32, device=like.device)
    else:
        device = like.get_device()
        made = _buffer("zeros", count, torch.int32, device, compat.raw_stream(device))
    return lent(made, lambda first: zeros(count, first))


def temporary(purpose: str, count: int, dtype: torch.dtype, like: Tensor) -> Tensor:
    """At least ``count`` elements, uninitialised, for one launch on the current stream of ``like``'s device."""
    if compat.is_fake(like) or not like.is_cuda or torch.cuda.is_current_stream_capturing():
        made = torch.empty(count, dtype=dtype, device=like.device)
    else:
        device = like.get_device()
        made = _buffer(purpose, count, dtype, device, compat.raw_stream(device))
    return lent(made, lambda first: temporary(purpose, count, dtype, first))


def descriptors(size: int, alignment: int, stream: int | None) -> Tensor:
    """Memory for the tensor descriptors of one launch: what ``triton.set_allocator`` takes."""
    device = torch.cuda.current_device()
    if stream is None or torch.cuda.is_current_stream_capturing():
        return torch.empty(size, dtype=torch.int8, device=torch.device("cuda", device))
    return _buffer("descriptors", size, torch.int8, device, stream)


def _buffer(purpose: str, count: int, dtype: torch.dtype, device: int, stream: int) -> Tensor:
    key = (purpose, dtype, device, stream)
    buffer = _BUFFERS.get(key)
    if buffer is None or buffer.numel() < count:
        if buffer is not None:
            _OUTGROWN.append(buffer)
        size = 1 << (max(count, _SMALLEST) - 1).bit_length()
        (buffer,) = resident(lambda: [torch.zeros(size, dtype=dtype, device=torch.device("cuda", device))], device)
        _BUFFERS[key] = buffer
    return buffer


def resident(make: Callable[[], list[Tensor]], device: int) -> list[Tensor]:
    """Tensors that outlive this call, ready for every stream.

    Made in a thread of its own: Inductor's warm-up of a CUDA graph lets this thread allocate from the graph's pool
    only, and later hands such memory to others.
    """
    made: list[Tensor] = []

    def work() -> None:
        with torch.cuda.device(device):
            made.extend(make())
            torch.cuda.current_stream().synchronize()

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    return made
