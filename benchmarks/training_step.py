"""A whole training step (forward, backward, fused AdamW) of a real model: time and peak memory against Inductor.

    python benchmarks/training_step.py --model vit_b16|llama_1b|vit_b|digits [--batch N]
        [--precision bf16|autocast|fp32] [--contenders inductor,hot,auto] [--fp32-eager] [--device cpu|cuda] [--quick]

All contenders start from the same weights and see the same batch, which they learn by heart: the losses must fall
alike. Steps are interleaved in one process. A contender's peak memory is what it allocates by itself: the maximum
over three steps, less what others held when it was made, plus the batch that all share.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from _common import arguments, compile_with, forget, interleaved, median, ratio, record, synchronize, warm_up
from _models import MODELS

import hadamard_fx
from examples.saved_tensors import saved_bytes

GIB = 2**30

WORKLOAD = (
    ("--model", {"choices": sorted(MODELS), "default": "vit_b16"}),
    ("--batch", {"type": int, "default": 0}),
    ("--precision", {"choices": ("bf16", "autocast", "fp32"), "default": "bf16", "help": "bf16: parameters too"}),
)
"""Options that ``stepper`` reads."""


@dataclass
class Seen:
    """What was measured of one contender before the race."""

    step: Callable[[], torch.Tensor]
    compile_seconds: float
    peak_bytes: int
    saved: int
    first_loss: float


def stepper(contender: str, options: Any) -> tuple[Callable[[], torch.Tensor], Callable[[], int]]:
    """(one training step, which returns the loss still on the device; the bytes saved for backward)."""
    eager32 = contender == "fp32 eager"
    dtype = torch.bfloat16 if options.precision == "bf16" and not eager32 else torch.float32
    torch.manual_seed(0)
    load = MODELS[options.model](options.batch, options.device, dtype, options.quick)
    module = load.module
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)
    compiled = compile_with("eager" if eager32 else contender, module)
    autocast = options.precision == "autocast" and not eager32

    def context() -> AbstractContextManager[Any]:
        return torch.autocast(options.device, torch.bfloat16) if autocast else nullcontext()

    def step() -> torch.Tensor:
        with context():
            loss: torch.Tensor = compiled(*load.inputs)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    def saved() -> int:
        with context():
            loss = compiled(*load.inputs)
        return saved_bytes(loss, [*load.inputs, *module.parameters()])

    return step, saved


def prepare(contender: str, options: Any) -> Seen:
    """Compile one contender and measure it alone."""
    cuda = options.device == "cuda"
    synchronize(options.device)
    before = torch.cuda.memory_allocated() if cuda else 0
    step, saved = stepper(contender, options)
    begin = time.perf_counter()
    first_loss = float(step())
    compile_seconds = time.perf_counter() - begin
    step()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        step()
    synchronize(options.device)
    peak = torch.cuda.max_memory_allocated() - before if cuda else 0
    kept = 0 if contender == "fp32 eager" else saved()
    print(f"{contender}: compiled in {compile_seconds:.1f} s, peak {peak / GIB:.2f} GiB", file=sys.stderr, flush=True)
    return Seen(step, compile_seconds, peak, kept, first_loss)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options = arguments(
        __doc__,
        argv,
        *WORKLOAD,
        ("--contenders", {"default": "inductor,hot,auto"}),
        ("--fp32-eager", {"action": "store_true"}),
        ("--rounds", {"type": int, "default": 12}),
        ("--block", {"type": int, "default": 5, "help": "steps between two synchronizations"}),
        ("--report", {"action": "store_true", "help": "print hadamard's reports"}),
    )
    contenders = options.contenders.split(",") + (["fp32 eager"] if options.fp32_eager else [])
    forget()
    warm_up(options.device)
    seen = {contender: prepare(contender, options) for contender in contenders}
    rounds, block = (2, 1) if options.quick else (options.rounds, options.block)
    times = interleaved({c: s.step for c, s in seen.items()}, options.device, rounds, block)
    medians = median(times)
    base = contenders[0]
    faster = ratio({c: 1 / seconds for c, seconds in medians.items()}, base)
    rows = [
        {
            "contender": c,
            "step, ms": medians[c] * 1e3,
            f"times {base}'s speed": faster[c],
            "peak, GiB": seen[c].peak_bytes / GIB,
            "saved for backward, GiB": seen[c].saved / GIB,
            "first step, s": seen[c].compile_seconds,
            "first loss": seen[c].first_loss,
            "last loss": float(seen[c].step()),
        }
        for c in contenders
    ]
    if options.report:
        for report in hadamard_fx.reports():
            print(report.text(width=120))
    figures = {"model": options.model, "batch": options.batch, "precision": options.precision, "seconds": times}
    record(f"training_step-{options.model}-{options.precision}", options, rows, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
