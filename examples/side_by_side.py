"""Train one model under several compilers side by side: the same weights, the same batches, a step of each in turn.

Turns are what makes times comparable, since whatever else the machine does slows all of them. A contender keeps one
module for all seeds, whose weights are set anew for each: nothing is compiled twice. Random numbers are seeded before
every step of every contender, so that what one draws does not depend on who else takes part.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TimeElapsedColumn
from torch import Tensor, nn
from torch._inductor.utils import clear_caches

from examples.saved_tensors import saved_bytes
from hadamard_fx.compat import any_number_of_compilations

__all__ = ["FIRST_STEPS", "WARM_STEPS", "Contender", "Task", "autocast", "clock", "train"]

FIRST_STEPS = 3
"""Steps that may still compile; what they take beyond the median is the compile time."""

WARM_STEPS = FIRST_STEPS + 5
"""Steps of each contender, thrown away, before the first seed: they compile."""

_NUMBER = itertools.count()


@dataclass(frozen=True)
class Task:
    """What is learned.

    Attributes:
        model: builds a model from the present random state; its output [..., classes] is compared with the targets.
        batches: seed -> endless (inputs, targets [...]), all of one shape.
        test: model -> the figure that contenders are compared by; it is called without gradients.
        steps: of one training.
        rate: the largest learning rate of AdamW, which rises over the first 15 % of the steps and falls after.
        amp: bfloat16 autocast.
        test_every: steps between two tests; the last step is followed by one in any case.
    """

    model: Callable[[], nn.Module]
    batches: Callable[[int], Iterable[tuple[Tensor, Tensor]]]
    test: Callable[[nn.Module], float]
    steps: int
    rate: float
    amp: bool
    test_every: int = 0


@dataclass
class Contender:
    """One compiler, its model, and what was seen of it.

    Attributes:
        times: seconds of every step, those that are thrown away included.
        curves: for each seed (steps done, test figure).
        losses: for each seed the training loss of every step.
    """

    name: str
    compile: Callable[[nn.Module], Callable[[Tensor], Tensor]]
    times: list[float] = field(default_factory=list)
    curves: list[list[tuple[int, float]]] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)
    saved: int = 0
    model: Any = None
    compiled: Any = None
    optimizer: Any = None
    schedule: Any = None

    def start(self, seed: int, task: Task, device: str) -> None:
        """The weights of that seed, and a new optimizer."""
        torch.manual_seed(seed)
        fresh = task.model().to(device)
        if self.model is None:
            self.model, self.compiled = fresh, self.compile(fresh)
        else:
            self.model.load_state_dict(fresh.state_dict())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=task.rate, weight_decay=0.05, fused=True)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, max_lr=task.rate, total_steps=max(task.steps, WARM_STEPS) + 1, pct_start=0.15
        )

    def step(self, inputs: Tensor, targets: Tensor, amp: bool) -> float:
        """One training step; returns the loss before it."""
        begin = clock(inputs.device)
        with autocast(inputs.device.type, amp):
            loss = F.cross_entropy(self.compiled(inputs).flatten(0, -2), targets.flatten())
        if len(self.times) == FIRST_STEPS:
            self.saved = saved_bytes(loss, [inputs, *self.model.parameters()])
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.times.append(clock(inputs.device) - begin)
        self.schedule.step()
        return loss.item()

    @property
    def scores(self) -> list[float]:
        """The last test figure of each seed."""
        return [curve[-1][1] for curve in self.curves if curve]

    @property
    def loss(self) -> float:
        """Of the last step."""
        return next((losses[-1] for losses in reversed(self.losses) if losses), float("nan"))

    @property
    def step_seconds(self) -> float:
        return statistics.median(self.times[FIRST_STEPS:])

    @property
    def compile_seconds(self) -> float:
        return max(sum(self.times[:FIRST_STEPS]) - FIRST_STEPS * self.step_seconds, 0.0)


def clock(device: torch.device) -> float:
    """Seconds, with everything done that was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def autocast(device: str, amp: bool) -> AbstractContextManager[Any]:
    """bfloat16 autocast where it is wanted."""
    return torch.autocast(device, torch.bfloat16) if amp else nullcontext()


def train(contenders: Sequence[Contender], task: Task, seeds: int, device: str, console: Console) -> None:
    """Train every contender for every seed, a step of each in turn."""
    columns = (SpinnerColumn(), "{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with (
        _own_caches() as caches,
        any_number_of_compilations(),  # all contenders compile the same functions
        Progress(*columns, console=console) as progress,
    ):
        row = progress.add_task("loading the compiler", total=WARM_STEPS * len(contenders))
        for number, contender in enumerate(contenders):
            progress.update(row, description=f"compiling with {contender.name}")
            _cold_caches(caches / str(number), device)
            _compile(contender, task, device)
            progress.update(row, advance=WARM_STEPS)
        progress.reset(row, total=task.steps * seeds)
        for seed in range(seeds):
            for text in _seed(contenders, task, seed, device):
                progress.update(row, advance=1, description=f"seed {seed}, loss: {text}")


def _seed(contenders: Sequence[Contender], task: Task, seed: int, device: str) -> Iterator[str]:
    """One training of each; after every step the losses as text."""
    for contender in contenders:
        contender.start(seed, task, device)
        contender.curves.append([])
        contender.losses.append([])
    for done, (inputs, targets) in enumerate(itertools.islice(task.batches(seed), task.steps), start=1):
        for contender in contenders:
            torch.manual_seed(seed * task.steps + done)
            contender.losses[-1].append(contender.step(inputs, targets, task.amp))
            if done == task.steps or (task.test_every and done % task.test_every == 0):
                with torch.no_grad():
                    contender.curves[-1].append((done, task.test(contender.model)))
        yield ", ".join(f"{contender.name} {contender.loss:.3f}" for contender in contenders)


def _compile(contender: Contender, task: Task, device: str) -> None:
    """Some steps that are thrown away."""
    contender.start(0, task, device)
    for inputs, targets in itertools.islice(task.batches(0), WARM_STEPS):
        contender.step(inputs, targets, task.amp)


@contextmanager
def _own_caches() -> Iterator[Path]:
    """An empty folder for Inductor's caches, which is removed in the end."""
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    finally:
        os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)
        if before is not None:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = before


def _cold_caches(folder: Path, device: str) -> None:
    """Empty Inductor's caches, but load its parts: nobody profits from another's compilation, nobody pays for all."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    clear_caches()
    x = torch.ones(64, 64 + next(_NUMBER), device=device, requires_grad=True)  # dynamo has no code for this size yet
    torch.compile(lambda x: (x @ x.T).sin().sum(), dynamic=False)(x).backward()
