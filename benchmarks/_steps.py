"""One training step (forward, backward, fused AdamW) of a model of ``_models`` as a contender runs it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from _contenders import compile_with, full_float32, is_compiled
from _models import MODELS

from examples.saved_tensors import saved_bytes

__all__ = ["WORKLOAD", "Steps", "stepper"]

WORKLOAD = (
    ("--model", {"choices": sorted(MODELS), "default": "vit_b16"}),
    ("--batch", {"type": int, "default": 0}),
    ("--precision", {"choices": ("bf16", "autocast", "fp32"), "default": "bf16", "help": "bf16: parameters too"}),
)
"""Options that ``stepper`` reads."""


@dataclass(frozen=True)
class Steps:
    """One contender on one workload.

    Attributes:
        step: one training step, which returns the loss still on the device.
        saved: counts the bytes saved for the backward; None without a compiled graph.
        description: of the model and its batch.
    """

    step: Callable[[], torch.Tensor]
    saved: Callable[[], int | None]
    description: str


def stepper(contender: str, options: Any) -> Steps:
    """Build the model as ``contender`` runs it; the first step compiles it.

    Args:
        options: holds the values of ``WORKLOAD``, ``device`` and ``quick``. ``eager32`` disregards the precision.
    """
    eager32 = contender == "eager32"
    dtype = torch.bfloat16 if options.precision == "bf16" and not eager32 else torch.float32
    torch.manual_seed(0)
    load = MODELS[options.model](options.batch, options.device, dtype, options.quick)
    module = load.module
    compiled = compile_with(contender, module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)

    def context() -> AbstractContextManager[Any]:
        autocast = options.precision == "autocast" and not eager32
        return torch.autocast(options.device, torch.bfloat16) if autocast else nullcontext()

    def step() -> torch.Tensor:
        with full_float32() if eager32 else nullcontext():
            with context():
                loss: torch.Tensor = compiled(*load.inputs)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    def saved() -> int | None:
        if not is_compiled(contender):
            return None
        with context():
            loss = compiled(*load.inputs)
        return saved_bytes(loss, [*load.inputs, *module.parameters(), *module.buffers()])

    return Steps(step, saved, load.description)
