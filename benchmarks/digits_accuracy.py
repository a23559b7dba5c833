"""Test accuracy of the digits ViT, trained from scratch, for several seeds.

    python benchmarks/digits_accuracy.py [--seeds 5] [--steps N] [--contenders exact,hot,hot+,luq,…]
        [--device cpu|cuda] [--jobs N] [--quick]

A contender is a profile with options, ``hot+forward=hadamard8``, or one of ``luq`` (``examples/luq.py``) and
``low_pass`` (LBP-WHT: 3 Walsh functions of each image's tokens): neither computes in few bits, but both gradients are
those of the papers. With a ``+`` behind it, the first and the last layer stay exact, as in ``examples/digits_vit.py``.
Accuracy is tested with exact products whatever a contender trains with.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from _from_scratch import Experiment, run

from examples.digits_vit import OUTER_EXACT, SIZES, Sizes, task
from examples.side_by_side import Task
from hadamard_fx.low_pass import LowPass

TRAINED: dict[str, Sizes] = {
    "cpu": SIZES["cpu"],
    "cuda": replace(SIZES["cuda"], dim=384, depth=6, heads=6, batch=128, epochs=40, rate=1e-3),
}
"""On a GPU smaller than the example: all contenders and seeds are to fit into minutes."""


def sized(options: Namespace) -> tuple[Task, Mapping[str, Any]]:
    """The task and its sizes."""
    sizes = TRAINED[options.device]
    if options.quick:
        sizes = replace(sizes, dim=64, epochs=2)
    made = task(sizes, options.device)
    return replace(made, steps=options.steps or made.steps), asdict(sizes)


def grid(options: Namespace) -> LowPass:
    """The tokens of one image; of each tile the mean and the two lowest frequencies."""
    side = 8 // TRAINED[options.device].patch
    return LowPass(side, side, order=side, kept=2)


EXPERIMENT = Experiment(
    name="digits_accuracy",
    figure="test accuracy, %",
    higher=True,
    contenders="exact,hot,hot+,hot+forward=hadamard8,hot-repo,luq,low_pass,int8,int4",
    task=sized,
    outer=OUTER_EXACT,
    grid=grid,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    return run(EXPERIMENT, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
