"""Held-out loss of a character GPT, trained from scratch on the standard library's source, for several seeds.

    python benchmarks/char_gpt_loss.py [--seeds 5] [--steps N] [--contenders exact,hot,luq,…] [--device cpu|cuda]
        [--jobs N] [--quick]

A contender is a profile with options, ``hot+forward=hadamard8``, or ``luq`` (``examples/luq.py``, emulated). With a
``+`` behind it, its head stays exact. The loss is tested with exact products whatever a contender trains with, in nats
per character; the training loss, of the last tenth of the steps, is the contender's own.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from _from_scratch import Experiment, run

from examples.char_gpt import SIZES, Sizes, task
from examples.side_by_side import Task

QUICK = Sizes(context=64, dim=64, depth=2, heads=2, batch=8, steps=20, rate=3e-3, amp=False, limit=200_000)

STEPS = {"cpu": 200, "cuda": 500}
"""Fewer than the example takes: all contenders and seeds are to fit into minutes."""


def sized(options: Namespace) -> tuple[Task, Mapping[str, Any]]:
    """The task and its sizes."""
    sizes = QUICK if options.quick else replace(SIZES[options.device], steps=STEPS[options.device])
    sizes = replace(sizes, steps=options.steps or sizes.steps)
    return task(sizes, options.device), asdict(sizes)


EXPERIMENT = Experiment(
    name="char_gpt_loss",
    figure="held-out loss, nats per character",
    higher=False,
    contenders="exact,hot,hot+grad_weight.rank=16,hot+forward=hadamard8,hot-repo,luq,low_pass,int8,int4",
    task=sized,
    outer={"head": "exact"},
    why_no_grid="LBP-WHT keeps low frequencies of the grid that the tokens of an image make up; a text has no grid",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return run(EXPERIMENT, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
