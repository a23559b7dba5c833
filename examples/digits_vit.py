"""Train one small vision transformer on handwritten digits twice: compiled by Inductor, and by hadamard.

The images are scikit-learn's 8×8 digits (1797 of them, shipped with that package). Both models start from the same
weights and see the same batches, and their steps alternate, so that whatever else the machine does slows both. The
first and the last layer stay exact (an override) unless ``--all-layers`` is given.

    python examples/digits_vit.py [--profile hot|auto|exact] [--all-layers] [--epochs N] [--seeds N] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this is a script of the checkout, not of the package

import hadamard_fx
from examples.side_by_side import Contender, Task, train
from examples.vit import VisionTransformer

OUTER_EXACT = {"embed|head": "exact"}
"""Tokens of one image are alike, so its low sequencies hold most; pixels (embed) and images (head) are not."""


@dataclass(frozen=True)
class Sizes:
    """What is trained on a device."""

    patch: int
    dim: int
    depth: int
    heads: int
    batch: int
    epochs: int
    rate: float
    amp: bool

    def model(self) -> VisionTransformer:
        return VisionTransformer(8, self.patch, self.dim, self.depth, self.heads, classes=10)


SIZES = {
    "cpu": Sizes(patch=2, dim=256, depth=2, heads=4, batch=64, epochs=15, rate=2e-3, amp=False),
    "cuda": Sizes(patch=1, dim=768, depth=8, heads=12, batch=256, epochs=40, rate=5e-4, amp=True),
}


def digits(device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images [1437, 1, 8, 8] and labels, test images [360, 1, 8, 8] and labels, always the same split."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32, device=device).unsqueeze(1) / 8 - 1
    labels = torch.tensor(data.target, device=device)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).to(device)
    train, test = order[:1437], order[1437:]
    return images[train], labels[train], images[test], labels[test]


def batches(seed: int, images: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Epoch after epoch in another order; all batches are full, so that one graph serves them."""
    generator, count = torch.Generator().manual_seed(seed), len(images)
    while True:
        for index in torch.randperm(count, generator=generator)[: count // size * size].split(size):
            yield images[index.to(images.device)], labels[index.to(images.device)]


def task(sizes: Sizes, device: str) -> Task:
    """Learn the training images; tested by the accuracy in per cent, computed without a compiler, after every epoch."""
    train_images, train_labels, test_images, test_labels = digits(device)
    per_epoch = len(train_images) // sizes.batch

    def accuracy(model: nn.Module) -> float:
        return 100 * (model(test_images).argmax(1) == test_labels).float().mean().item()

    return Task(
        model=sizes.model,
        batches=lambda seed: batches(seed, train_images, train_labels, sizes.batch),
        test=accuracy,
        steps=per_epoch * sizes.epochs,
        rate=sizes.rate,
        amp=sizes.amp,
        test_every=per_epoch,
    )


def result(contender: Contender) -> dict[str, Any]:
    """The figures of one contender, for a program."""
    return {
        "accuracy_percent": contender.scores,
        "median_step_seconds": contender.step_seconds,
        "saved_for_backward_bytes": contender.saved,
        "compile_seconds": contender.compile_seconds,
    }


def table(contenders: list[Contender], title: str) -> Table:
    """The figures of all contenders, and the ratio of the second to the first."""

    def accuracy(contender: Contender) -> str:
        values = contender.scores
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.2f}{spread} %"

    rows: list[tuple[str, Callable[[Contender], float], Callable[[Contender], str]]] = [
        ("median step", lambda c: c.step_seconds, lambda c: f"{c.step_seconds * 1e3:.1f} ms"),
        ("saved for backward", lambda c: c.saved, lambda c: f"{c.saved / 2**20:.1f} MiB"),
        ("compile time", lambda c: c.compile_seconds, lambda c: f"{c.compile_seconds:.1f} s"),
    ]
    made = Table("", *(c.name for c in contenders), "ratio", title=title, caption="one test image is 0.28 points")
    first, last = contenders[0], contenders[-1]
    points = statistics.mean(last.scores) - statistics.mean(first.scores)
    made.add_row("test accuracy", *map(accuracy, contenders), f"{points:+.2f} points")
    for name, value, text in rows:
        ratio = f"{value(last) / value(first):.2f}×" if value(first) else ""
        made.add_row(name, *map(text, contenders), ratio)
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run the demonstration; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--profile", default="hot", help="of hadamard: hot (default), auto or exact")
    parser.add_argument("--all-layers", action="store_true", help="let the profile rule the first and last layer too")
    parser.add_argument("--epochs", type=int, help="passes over the training images")
    parser.add_argument("--seeds", type=int, default=1, help="trainings with different weights and batches (default 1)")
    parser.add_argument("--device", choices=sorted(SIZES), help="default: cuda where there is one")
    parser.add_argument(
        "--json", action="store_true", help="figures as JSON on standard output, the rest on standard error"
    )
    options = parser.parse_args(arguments)
    if options.seeds < 1 or (options.epochs is not None and options.epochs < 1):
        parser.error("--seeds and --epochs must be at least 1")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    sizes = Sizes(**{**vars(SIZES[device]), **({"epochs": options.epochs} if options.epochs else {})})
    console = Console(stderr=options.json)
    chosen = {"profile": options.profile, "overrides": {} if options.all_layers else OUTER_EXACT}
    contenders = [
        Contender("inductor", lambda model: torch.compile(model, backend="inductor")),
        Contender("hadamard", lambda model: torch.compile(model, backend="hadamard", options=chosen)),
    ]
    train(contenders, task(sizes, device), options.seeds, device, console)
    place = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    console.print(table(contenders, f"vision transformer on digits, {place}, profile {options.profile}"))
    for report in hadamard_fx.reports():
        console.print(report)
    if options.json:
        figures = {contender.name: result(contender) for contender in contenders}
        print(json.dumps({"device": place, "sizes": vars(sizes), "options": chosen, **figures}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
