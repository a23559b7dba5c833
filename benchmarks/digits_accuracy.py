"""Test accuracy of the digits ViT, trained from scratch, mean and standard deviation over seeds.

``hot+`` is hot with the first and the last layer exact, as in ``examples/digits_vit.py``. Besides profiles, ``luq``
(``examples/luq.py``, emulated) and ``low_pass`` (LBP-WHT: 3 of the 4 × 4 Walsh functions of each image's tokens) may be
named: neither computes in few bits, but both gradients are those of the papers.

python benchmarks/digits_accuracy.py [--seeds 5] [--profiles exact,hot,hot+,auto] [--device cpu|cuda] [--quick]
"""

from __future__ import annotations

import statistics
import sys
from typing import Any

import torch
from _common import arguments, record
from _contenders import compile_with
from rich.console import Console

import examples.luq
from examples.digits_vit import OUTER_EXACT, SIZES, Contender, Sizes, train
from hadamard_fx.low_pass import LowPass


def named(name: str, sizes: Sizes) -> tuple[str, dict[str, Any]]:
    """The profile that a name stands for, and its options."""
    if name == "luq":
        every = dict.fromkeys(("forward", "grad_input", "grad_weight"), examples.luq.Luq())
        return "exact", every
    if name == "low_pass":
        side = 8 // sizes.patch
        scheme = LowPass(side, side, order=min(side, 8), kept=2)
        return "exact", {"grad_input": scheme, "grad_weight": scheme}
    return name.removesuffix("+"), {"overrides": OUTER_EXACT} if name.endswith("+") else {}


def contender(name: str, sizes: Sizes) -> Contender:
    """The demo's contender with a profile of hadamard."""
    profile, options = named(name, sizes)

    def compiler(model: torch.nn.Module) -> Any:
        return compile_with(profile, model, **options)

    return Contender(name, compiler)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options = arguments(
        __doc__,
        argv,
        ("--seeds", {"type": int, "default": 5}),
        ("--epochs", {"type": int, "default": 0}),
        ("--profiles", {"default": "exact,hot,hot+,auto", "help": "the first is what the others are compared with"}),
    )
    sizes = SIZES[options.device]
    epochs = options.epochs or (2 if options.quick else sizes.epochs)
    sizes = Sizes(**{**vars(sizes), "epochs": epochs})
    contenders = [contender(name, sizes) for name in options.profiles.split(",")]
    train(contenders, 2 if options.quick else options.seeds, sizes, options.device, Console(stderr=True))
    means = {c.name: statistics.mean(c.accuracies) for c in contenders}
    rows = [
        {
            "profile": c.name,
            "accuracy, %": means[c.name],
            "standard deviation": statistics.stdev(c.accuracies) if len(c.accuracies) > 1 else 0.0,
            "points from the first": means[c.name] - means[contenders[0].name],
            "final loss": c.loss,
            "step, ms": c.step_seconds * 1e3,
        }
        for c in contenders
    ]
    figures = {"sizes": vars(sizes), "accuracies": {c.name: c.accuracies for c in contenders}}
    record("digits_accuracy", options, rows, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
