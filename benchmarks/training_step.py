"""A whole training step (forward, backward, fused AdamW) of a real model: time and peak memory against Inductor.

    python benchmarks/training_step.py --model vit_b16|llama_1b|… [--batch N] [--precision bf16|autocast|fp32]
        [--contenders inductor,hot,auto|field] [--device cpu|cuda] [--quick]

All contenders start from the same weights and see the same batch, which they learn by heart: the losses must fall
alike. Steps are interleaved in one process. A contender's peak memory is what it allocates by itself: the maximum
over three steps, less what others held when it was made, plus the batch that all share. One that cannot run has a row
that says why; the exit code is 1 if that is an error, and not the lack of a package, of a layer or of memory.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from _common import arguments, forget, free, interleaved, median, record, synchronize, warm_up
from _contenders import FIELD, OUT_OF_MEMORY, attempt, measured_last
from _steps import WORKLOAD, stepper

import hadamard_fx
from hadamard_fx.compat import any_number_of_compilations

GIB = 2**30
BASE = "inductor"
"""What speeds are relative to, in the same run."""


@dataclass
class Seen:
    """What was measured of one contender before the race."""

    step: Callable[[], torch.Tensor]
    compile_seconds: float
    peak_bytes: int
    saved: int | None
    first_loss: float
    description: str


def prepare(contender: str, options: Any) -> Seen:
    """Compile one contender and measure it alone."""
    cuda = options.device == "cuda"
    synchronize(options.device)
    before = torch.cuda.memory_allocated() if cuda else 0
    steps = stepper(contender, options)
    begin = time.perf_counter()
    first_loss = float(steps.step())
    compile_seconds = time.perf_counter() - begin
    steps.step()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        steps.step()
    synchronize(options.device)
    peak = torch.cuda.max_memory_allocated() - before if cuda else 0
    kept = steps.saved()
    print(f"{contender}: compiled in {compile_seconds:.1f} s, peak {peak / GIB:.2f} GiB", file=sys.stderr, flush=True)
    return Seen(steps.step, compile_seconds, peak, kept, first_loss, steps.description)


def prepare_all(contenders: Sequence[str], options: Any) -> tuple[dict[str, Seen], dict[str, str], bool]:
    """(what was seen of those that run, why the others do not, whether all reasons were to be expected).

    Those that ran alone step once more beside all others: one that then finds no memory drops out here, not in the
    race.
    """
    seen: dict[str, Seen] = {}
    reasons: dict[str, str] = {}
    fine = True
    for contender in measured_last(contenders):
        held = torch.cuda.memory_allocated() / GIB if options.device == "cuda" else 0.0
        found, reason, expected = attempt(partial(prepare, contender, options))
        fine &= expected
        if found is not None:
            seen[contender] = found
            continue
        reasons[contender] = f"{reason}; the others held {held:.1f} GiB" if reason == OUT_OF_MEMORY else reason
        print(f"{contender}: {reasons[contender]}", file=sys.stderr, flush=True)
    for contender in tuple(seen):
        loss, reason, expected = attempt(seen[contender].step)
        fine &= expected
        if loss is None:
            reasons[contender] = f"{reason}, beside the other contenders"
            del seen[contender]
            free()
    return {c: seen[c] for c in contenders if c in seen}, reasons, fine


def race(seen: Mapping[str, Seen], options: Any) -> tuple[dict[str, list[float]], int]:
    """(seconds of every contender's steps, how often the allocator had to start afresh meanwhile, which costs time)."""
    rounds, block = (2, 1) if options.quick else (options.rounds, options.block)
    cuda = options.device == "cuda"
    before = torch.cuda.memory_stats()["num_alloc_retries"] if cuda else 0
    times = interleaved({c: s.step for c, s in seen.items()}, options.device, rounds, block)
    return times, torch.cuda.memory_stats()["num_alloc_retries"] - before if cuda else 0


def row(contender: str, seen: Seen | None, medians: Mapping[str, float]) -> dict[str, Any]:
    """One line of the table; None for what was not measured."""
    seconds, base = medians.get(contender), medians.get(BASE)
    return {
        "contender": contender,
        "step, ms": seconds and seconds * 1e3,
        f"times {BASE}'s speed": seconds and base and base / seconds,
        "peak, GiB": seen and seen.peak_bytes / GIB,
        "saved for backward, GiB": None if seen is None or seen.saved is None else seen.saved / GIB,
        "first step, s": seen and seen.compile_seconds,
        "first loss": seen and seen.first_loss,
        "last loss": seen and float(seen.step()),
    }


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options = arguments(
        __doc__,
        argv,
        *WORKLOAD,
        ("--contenders", {"default": "inductor,hot,auto", "help": f"see _contenders.py; field: {','.join(FIELD)}"}),
        ("--rounds", {"type": int, "default": 12}),
        ("--block", {"type": int, "default": 5, "help": "steps between two synchronizations"}),
        ("--report", {"action": "store_true", "help": "print hadamard's reports"}),
    )
    contenders = FIELD if options.contenders == "field" else tuple(options.contenders.split(","))
    forget()
    warm_up(options.device)
    with any_number_of_compilations():  # all contenders compile the same functions
        seen, reasons, fine = prepare_all(contenders, options)
        times, retries = race(seen, options)
        medians = median(times)
        rows = [row(c, seen.get(c), medians) for c in contenders]
    if reasons:
        rows = [{**r, "did not run": reasons.get(r["contender"], "")} for r in rows]
    if options.report:
        for report in hadamard_fx.reports():
            print(report.text(width=120))
    figures = {
        "model": options.model,
        "description": next((s.description for s in seen.values()), options.model),
        "batch": options.batch,
        "precision": options.precision,
        "allocator retries": retries,
        "seconds": times,
    }
    record(f"training_step-{options.model}-{options.precision}", options, rows, figures)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
