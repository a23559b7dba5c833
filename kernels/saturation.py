"""How many partial sums an accumulator could not hold: counters on the device, read when somebody asks.

A product that counts adds two numbers to its counter, the sums that saturated and all of them. The counter is found by
a name that stands in the graph, so that a graph from a compilation cache counts too. It lives as long as the process
and is never read by a kernel: results do not depend on it. A product that is computed again in the backward (activation
checkpointing) counts again.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from . import workspace

__all__ = ["counter", "counts", "forget"]

_COUNTERS: dict[tuple[str, torch.device], Tensor] = {}
_LOCK = threading.Lock()


def counter(name: str, device: torch.device) -> Tensor:
    """int64 [2] on ``device``: saturated sums, all sums. The same tensor for a name from now on."""
    key = (name, device)
    with _LOCK:
        if key not in _COUNTERS:
            # Past the tracing modes and memory pools of the caller: the counter outlives its call.
            index = device.index or 0 if device.type == "cuda" else None
            _COUNTERS[key] = _zeros(device) if index is None else workspace.resident(lambda: [_zeros(device)], index)[0]
        return _COUNTERS[key]


def _zeros(device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # a tensor of inference mode could not be added to outside of it
        return torch.zeros(2, dtype=torch.int64, device=device)


def counts(name: str) -> tuple[int, int] | None:
    """(saturated sums, all sums) of every call under ``name`` so far; None where there was none. Waits for the device.

    Returns:
        sums over all devices.
    """
    with _LOCK:
        found = [tensor for (own, _), tensor in _COUNTERS.items() if own == name]
    numbers = [tensor.tolist() for tensor in found]
    return (sum(n[0] for n in numbers), sum(n[1] for n in numbers)) if numbers else None


def forget() -> None:
    """Set every counter to zero."""
    with _LOCK:
        for tensor in _COUNTERS.values():
            tensor.zero_()
