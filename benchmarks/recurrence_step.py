"""A training step of an orthogonal recurrent net over a long sequence, against ``torch.nn.RNN``, which runs eagerly.

    python benchmarks/recurrence_step.py [--steps 1000] [--batch 64] [--hidden 256] [--device cpu|cuda] [--quick]

Every net has ReLU, 10 inputs and a linear output of 10 at every step. ``nn.RNN`` is what torch offers (cuDNN on CUDA
devices); ``orthogonal`` is ``OrthogonalRNN`` eagerly, ``hadamard`` with HadamRNN's matrix; ``qornn`` is the first under
``torch.compile`` with that profile, ``björck`` with its orthogonalisation inside; ``plain loop`` is a user's own Python
loop under the same profile, which a compiler unrolls and ``passes/roll_loops.py`` rolls up again: it is timed where
``--loop`` asks for it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from _common import arguments, interleaved, median, ratio, record, warm_up
from torch import Tensor, nn

from hadamard_fx.orthogonal.recurrent import ORNNConfig, OrthogonalRNN

FEATURES = 10
QORNN = {"profile": "qornn", "bits": 5}


class Builtin(nn.Module):
    """``nn.RNN`` with the same output layer."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.rnn = nn.RNN(FEATURES, hidden, nonlinearity="relu", batch_first=True)
        nn.init.orthogonal_(self.rnn.weight_hh_l0)
        self.output = nn.Linear(hidden, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.output(self.rnn(x)[0])
        return made


class Loop(nn.Module):
    """h = σ(W h + U x), step by step in Python."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.W = nn.Parameter(nn.init.orthogonal_(torch.empty(hidden, hidden)))
        self.U = nn.Parameter(torch.randn(hidden, FEATURES) / FEATURES)
        self.output = nn.Linear(hidden, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.W.shape[0])
        states = []
        for step in x.unbind(1):
            h = torch.relu(h @ self.W.T + step @ self.U.T)
            states.append(h)
        made: Tensor = self.output(torch.stack(states, 1))
        return made


def contenders(hidden: int, loop: bool) -> dict[str, tuple[nn.Module, dict[str, Any] | None]]:
    """Name ⇒ (net, options of the compiler; None: eager)."""

    def orthogonal(training: str) -> nn.Module:
        return OrthogonalRNN(ORNNConfig(FEATURES, hidden, FEATURES, training=training, every_step=True))

    made: dict[str, tuple[nn.Module, dict[str, Any] | None]] = {
        "nn.RNN": (Builtin(hidden), None),
        "orthogonal": (orthogonal("projunn"), None),
        "hadamard": (orthogonal("hadamard"), None),
        "qornn": (orthogonal("projunn"), QORNN),
        "qornn, björck": (orthogonal("bjorck"), QORNN),
    }
    return {**made, "qornn, plain loop": (Loop(hidden), QORNN)} if loop else made


def stepper(model: nn.Module, options: dict[str, Any] | None, x: Tensor) -> Callable[[], float]:
    """One forward and backward; returns the loss."""
    run: Any = model if options is None else torch.compile(model, backend="hadamard", options=options)

    def step() -> float:
        loss: Tensor = run(x).square().mean()
        loss.backward()
        model.zero_grad()
        return loss.item()

    return step


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options = arguments(
        __doc__,
        argv,
        ("--steps", {"type": int, "default": 1000}),
        ("--batch", {"type": int, "default": 64}),
        ("--hidden", {"type": int, "default": 256}),
        ("--rounds", {"type": int, "default": 9}),
        ("--loop", {"action": "store_true", "help": "time a Python loop too"}),
    )
    if options.quick:
        options.steps, options.batch, options.hidden, options.rounds = 20, 4, 16, 2
    torch.compiler.config.force_disable_caches = True  # the first step shall compile
    torch.manual_seed(0)
    x = torch.randn(options.batch, options.steps, FEATURES, device=options.device)
    warm_up(options.device)
    steps, first = {}, {}
    for name, (model, chosen) in contenders(options.hidden, options.loop).items():
        steps[name] = stepper(model.to(options.device), chosen, x)
        begin = time.perf_counter()
        steps[name]()
        first[name] = time.perf_counter() - begin
        steps[name]()
    times = interleaved(steps, options.device, options.rounds)
    medians = median(times)
    faster = ratio({name: 1 / seconds for name, seconds in medians.items()}, "nn.RNN")
    rows = [
        {
            "contender": name,
            "step, ms": medians[name] * 1e3,
            "fastest, ms": min(times[name]) * 1e3,
            "times nn.RNN's speed": faster[name],
            "first step, s": first[name],
        }
        for name in steps
    ]
    sizes = {name: getattr(options, name) for name in ("steps", "batch", "hidden")}
    usual = sizes == {"steps": 1000, "batch": 64, "hidden": 256}
    name = "recurrence_step" + ("" if usual else "".join(f"-{key}-{value}" for key, value in sizes.items()))
    record(name, options, rows, {"sizes": sizes, "threads": torch.get_num_threads(), "seconds": times})
    return 0


if __name__ == "__main__":
    sys.exit(main())
