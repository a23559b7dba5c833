"""A whole training step of an MLP 1024-4096-1024 on 4096 tokens in float32, against Inductor.

    python benchmarks/mlp_cpu.py [--optimizer sgd|adamw] [--input-gradient] [--device cpu|cuda] [--quick]

The input of the MLP needs no gradient, as in a model of its own; ``--input-gradient`` asks for one, as inside a larger
model, where the step has a sixth product.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from _common import arguments, interleaved, median, ratio, record, warm_up
from _contenders import compile_with
from torch import Tensor, nn

CONTENDERS = ("inductor", "hot", "auto")


def stepper(contender: str, model: nn.Module, x: Tensor, target: Tensor, optimizer: str) -> Callable[[], float]:
    """A function that takes one whole training step and returns the loss."""
    kinds = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    chosen = kinds[optimizer](model.parameters(), lr=1e-3, fused=True)
    compiled = compile_with(contender, lambda x: F.mse_loss(model(x), target))

    def step() -> float:
        loss: Tensor = compiled(x)
        loss.backward()
        chosen.step()
        chosen.zero_grad()
        x.grad = None
        return loss.item()

    return step


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options = arguments(
        __doc__,
        argv,
        ("--optimizer", {"choices": ("sgd", "adamw"), "default": "sgd"}),
        ("--input-gradient", {"action": "store_true", "help": "the input needs a gradient too"}),
        ("--rounds", {"type": int, "default": 15}),
    )
    tokens, width, hidden = (256, 128, 512) if options.quick else (4096, 1024, 4096)
    rounds = 3 if options.quick else options.rounds
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)).to(options.device)
    x = torch.randn(tokens, width, device=options.device, requires_grad=options.input_gradient)
    target = torch.randn(tokens, width, device=options.device)
    warm_up(options.device)
    steps = {c: stepper(c, copy.deepcopy(model), x, target, options.optimizer) for c in CONTENDERS}
    losses = {c: [step() for _ in range(3)][-1] for c, step in steps.items()}
    times = interleaved(steps, options.device, rounds)
    medians = median(times)
    faster = ratio({c: 1 / seconds for c, seconds in medians.items()}, "inductor")
    rows = [
        {
            "contender": c,
            "step, ms": medians[c] * 1e3,
            "fastest, ms": min(times[c]) * 1e3,
            "times Inductor's speed": faster[c],
            "loss of step 3": losses[c],
        }
        for c in CONTENDERS
    ]
    sizes = {"tokens": tokens, "width": width, "hidden": hidden, "optimizer": options.optimizer}
    sizes["input_gradient"] = options.input_gradient
    record(f"mlp_cpu-{options.optimizer}", options, rows, {"sizes": sizes, "seconds": times})
    return 0


if __name__ == "__main__":
    sys.exit(main())
