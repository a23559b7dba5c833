"""Train one small vision transformer on handwritten digits twice: compiled by Inductor, and by hadamard.

The images are scikit-learn's 8×8 digits (1797 of them, shipped with that package). Both models start from the same
weights and see the same batches, and their steps alternate, so that whatever else the machine does slows both. The
first and the last layer stay exact (an override) unless ``--all-layers`` is given.

    python examples/digits_vit.py [--profile hot|auto|exact] [--all-layers] [--epochs N] [--seeds N] [--json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor
from torch._inductor.utils import clear_caches

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this is a script of the checkout, not of the package

import hadamard_fx
from examples.saved_tensors import saved_bytes
from examples.vit import VisionTransformer

FIRST_STEPS = 3
"""Steps that may still compile; what they take beyond the median is the compile time."""

OUTER_EXACT = {"embed|head": "exact"}
"""Tokens of one image are alike, so its low sequencies hold most; pixels (embed) and images (head) are not."""

_NUMBER = itertools.count()


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


@dataclass
class Contender:
    """One compiler, its model, and what was seen of it."""

    name: str
    compile: Callable[[torch.nn.Module], Callable[[Tensor], Tensor]]
    times: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    saved: int = 0
    loss: float = float("nan")
    model: Any = None
    compiled: Any = None
    optimizer: Any = None
    schedule: Any = None

    def start(self, seed: int, sizes: Sizes, device: str, steps: int) -> None:
        """A new model of that seed; compiled code of earlier seeds is used again."""
        torch.manual_seed(seed)
        self.model = sizes.model().to(device)
        self.compiled = self.compile(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=sizes.rate, weight_decay=0.05, fused=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, max_lr=sizes.rate, total_steps=steps, pct_start=0.15
        )

    def step(self, images: Tensor, labels: Tensor, amp: bool) -> None:
        begin = clock(images.device)
        with torch.autocast(images.device.type, torch.bfloat16) if amp else nullcontext():
            loss = F.cross_entropy(self.compiled(images), labels)
        if len(self.times) == FIRST_STEPS:
            self.saved = saved_bytes(loss, [images, *self.model.parameters()])
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.times.append(clock(images.device) - begin)
        self.schedule.step()
        self.loss = loss.item()

    def test(self, images: Tensor, labels: Tensor) -> None:
        """Accuracy in per cent, computed without a compiler."""
        with torch.no_grad():
            right = self.model(images).argmax(1) == labels
        self.accuracies.append(100 * right.float().mean().item())

    @property
    def step_seconds(self) -> float:
        return statistics.median(self.times[FIRST_STEPS:])

    @property
    def compile_seconds(self) -> float:
        return max(sum(self.times[:FIRST_STEPS]) - FIRST_STEPS * self.step_seconds, 0.0)

    def result(self) -> dict[str, Any]:
        return {
            "accuracy_percent": self.accuracies,
            "median_step_seconds": self.step_seconds,
            "saved_for_backward_bytes": self.saved,
            "compile_seconds": self.compile_seconds,
        }


def clock(device: torch.device) -> float:
    """Seconds, with everything done that was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def digits(device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images [1437, 1, 8, 8] and labels, test images [360, 1, 8, 8] and labels, always the same split."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32, device=device).unsqueeze(1) / 8 - 1
    labels = torch.tensor(data.target, device=device)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).to(device)
    train, test = order[:1437], order[1437:]
    return images[train], labels[train], images[test], labels[test]


def batches(seed: int, count: int, sizes: Sizes, epochs: int) -> Iterator[Tensor]:
    """Indices of each batch; all batches are full, so that one graph serves them."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from torch.randperm(count, generator=generator)[: count // sizes.batch * sizes.batch].split(sizes.batch)


def cold_caches(folder: Path, device: str) -> None:
    """Empty Inductor's caches, but load its parts: nobody profits from another's compilation, nobody pays for all."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    clear_caches()
    x = torch.ones(64, 64 + next(_NUMBER), device=device, requires_grad=True)  # dynamo has no code for this size yet
    torch.compile(lambda x: (x @ x.T).sin().sum(), dynamic=False)(x).backward()


def train(contenders: list[Contender], seeds: int, sizes: Sizes, device: str, console: Console) -> None:
    """Train every contender for every seed, a step of each in turn."""
    train_images, train_labels, test_images, test_labels = digits(device)
    per_epoch = len(train_images) // sizes.batch
    steps = per_epoch * sizes.epochs
    columns = (SpinnerColumn(), "{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as caches,
        Progress(*columns, console=console) as progress,
    ):
        task = progress.add_task("loading the compiler", total=steps * seeds)
        for seed in range(seeds):
            for contender in contenders:
                contender.start(seed, sizes, device, steps)
            for index in batches(seed, len(train_images), sizes, sizes.epochs):
                images, labels = train_images[index.to(device)], train_labels[index.to(device)]
                for contender in contenders:
                    if not contender.times:
                        progress.update(task, description=f"compiling with {contender.name}")
                        cold_caches(Path(caches, contender.name), device)
                    contender.step(images, labels, sizes.amp)
                losses = ", ".join(f"{contender.name} {contender.loss:.3f}" for contender in contenders)
                progress.update(task, advance=1, description=f"seed {seed}, loss: {losses}")
            for contender in contenders:
                contender.test(test_images, test_labels)


def table(contenders: list[Contender], title: str) -> Table:
    """The figures of all contenders, and the ratio of the second to the first."""

    def accuracy(contender: Contender) -> str:
        values = contender.accuracies
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.2f}{spread} %"

    rows: list[tuple[str, Callable[[Contender], float], Callable[[Contender], str]]] = [
        ("median step", lambda c: c.step_seconds, lambda c: f"{c.step_seconds * 1e3:.1f} ms"),
        ("saved for backward", lambda c: c.saved, lambda c: f"{c.saved / 2**20:.1f} MiB"),
        ("compile time", lambda c: c.compile_seconds, lambda c: f"{c.compile_seconds:.1f} s"),
    ]
    made = Table("", *(c.name for c in contenders), "ratio", title=title, caption="one test image is 0.28 points")
    first, last = contenders[0], contenders[-1]
    points = statistics.mean(last.accuracies) - statistics.mean(first.accuracies)
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
    train(contenders, options.seeds, sizes, device, console)
    place = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU threads"
    console.print(table(contenders, f"vision transformer on digits, {place}, profile {options.profile}"))
    for report in hadamard_fx.reports():
        console.print(report)
    if options.json:
        figures = {contender.name: contender.result() for contender in contenders}
        print(json.dumps({"device": place, "sizes": vars(sizes), "options": chosen, **figures}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
