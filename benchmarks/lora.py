"""Memory and time of fine-tuning as a whole and by adapters (LoRA), under Inductor and under hot.

    python benchmarks/lora.py [--rank 8] [--batch N] [--device cpu|cuda] [--quick]

The model is this repository's transformer in the shape of ViT-B/16, bfloat16 on a GPU, with fused AdamW; adapters stand
beside the attention's layers (``examples/lora.py``), or beside all of them (``--layers '.*(qkv|proj|fc1|fc2)'``).
Saved bytes are counted on the tensors that the compiled code really keeps. Peak memory, on a GPU, is that of three
steps, less what was allocated before the contender was made; the state of its optimizer is part of it.
"""

from __future__ import annotations

import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from _common import arguments, forget, record, synchronize, warm_up
from _contenders import attempt, compile_with
from _models import Classifier

from examples.lora import ADAPTED, ADAPTERS_PRICED, adapt
from examples.saved_tensors import saved_bytes
from examples.vit import VisionTransformer

MIB = 2**20
CLASSES = 1000

CONTENDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "inductor": ("inductor", {}),
    "hot": ("hot", {}),
    "hot, adapters priced": ("hot", {"overrides": ADAPTERS_PRICED}),
}
"""Name -> (profile or compiler, options)."""


@dataclass(frozen=True)
class Measured:
    """Of one contender; the peak is 0 on a CPU, where it is not measured."""

    parameters: int
    saved: int
    peak: int
    seconds: float
    losses: tuple[float, float]


def build(options: Namespace, adapters: bool) -> tuple[Classifier, tuple[torch.Tensor, torch.Tensor]]:
    """The model, with the same weights for all, and one batch."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    size = 32 if options.quick else 224
    images = torch.randn(options.batch, 3, size, size, device=options.device, dtype=dtype)
    labels = torch.randint(CLASSES, (options.batch,), device=options.device)
    if options.quick:
        model = VisionTransformer(32, 8, dim=64, depth=2, heads=4, classes=CLASSES, channels=3)
    else:
        model = VisionTransformer(224, 16, dim=768, depth=12, heads=12, classes=CLASSES, channels=3)
    module = Classifier(model).to(options.device, dtype)
    if adapters:
        adapt(module, options.rank, options.layers)
    return module, (images, labels)


def stepper(module: Classifier, compiled: Callable[..., Any], inputs: tuple[torch.Tensor, ...]) -> Callable[[], float]:
    """One training step, which returns the loss."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def step() -> float:
        loss = compiled(*inputs)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def measure(contender: str, adapters: bool, options: Namespace) -> Measured:
    """Compile one contender and take some steps."""
    cuda = options.device == "cuda"
    before = torch.cuda.memory_allocated() if cuda else 0
    profile, settings = CONTENDERS[contender]
    module, inputs = build(options, adapters)
    compiled = compile_with(profile, module, **settings)
    step = stepper(module, compiled, inputs)
    first = step()
    step()
    saved = saved_bytes(compiled(*inputs), [*inputs, *module.parameters(), *module.buffers()])
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        step()
    synchronize(options.device)
    peak = torch.cuda.max_memory_allocated() - before if cuda else 0
    times, last = [], first
    for _ in range(2 if options.quick else 10):
        begin = time.perf_counter()
        last = step()
        synchronize(options.device)
        times.append(time.perf_counter() - begin)
    parameters = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    return Measured(parameters, saved, peak, statistics.median(times), (first, last))


def row(training: str, contender: str, found: Measured | None, reason: str) -> dict[str, Any]:
    """One line of the table; None for what was not measured."""
    return {
        "training": training,
        "contender": contender,
        "trained parameters": found and found.parameters,
        "saved for backward, MiB": found and found.saved / MIB,
        "peak, MiB": (found and found.peak / MIB) or None,
        "step, ms": found and found.seconds * 1e3,
        "first loss": found and found.losses[0],
        "last loss": found and found.losses[1],
        "did not run": reason,
    }


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options = arguments(
        __doc__,
        argv,
        ("--rank", {"type": int, "default": 8, "help": "of the adapters"}),
        ("--layers", {"default": rf"model\.{ADAPTED}", "help": "regular expression over names of adapted layers"}),
        ("--batch", {"type": int, "default": 0}),
    )
    options.batch = options.batch or (2 if options.quick or options.device == "cpu" else 128)
    warm_up(options.device)
    rows, fine = [], True
    for training, adapters in (("whole", False), ("adapters", True)):
        for contender in CONTENDERS:
            if adapters or CONTENDERS[contender][1] == {}:
                forget()
                found, reason, expected = attempt(partial(measure, contender, adapters, options))
                fine &= expected
                rows.append(row(training, contender, found, reason))
    record("lora", options, rows, {"rank": options.rank, "layers": options.layers, "batch": options.batch})
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
