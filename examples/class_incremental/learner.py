"""What every class-incremental method does: learn a task, keep a few examples of it, predict among all classes so far.

A method is a subclass that says what the loss of a batch is, how it predicts, and what it does after a task. The model
is any module from inputs to one score per class of all tasks, with ``features`` for what is below its last layer.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import Split

__all__ = ["Learner", "Settings", "distillation", "herding"]


@dataclass(frozen=True)
class Settings:
    """Of the training of one task.

    Attributes:
        memory: examples of earlier tasks that may be kept, all classes together.
        temperature: of the distillation.
    """

    epochs: int = 20
    batch: int = 32
    rate: float = 0.05
    momentum: float = 0.9
    memory: int = 200
    temperature: float = 2.0


def distillation(scores: Tensor, old_scores: Tensor, temperature: float) -> Tensor:
    """Cross-entropy to the softened predictions of the old model [B, classes of earlier tasks] (LwF, equation 2)."""
    target = F.softmax(old_scores / temperature, 1)
    return -(target * F.log_softmax(scores / temperature, 1)).sum(1).mean() * temperature**2


def herding(features: Tensor, count: int) -> list[int]:
    """Examples whose mean stays nearest to the mean of all, in order (iCaRL, algorithm 4)."""
    normal = F.normalize(features, dim=1)
    mean, total = normal.mean(0), torch.zeros_like(normal[0])
    left, chosen = torch.ones(len(features), dtype=torch.bool), list[int]()
    for number in range(1, min(count, len(features)) + 1):
        distance = (mean - (total + normal) / number).norm(dim=1).masked_fill(~left, float("inf"))
        best = int(distance.argmin())
        chosen.append(best)
        left[best] = False
        total = total + normal[best]
    return chosen


class Learner:
    """The frame of a method.

    Args:
        model: from inputs to scores [B, all classes]; trained in place, in float32, by SGD.
        compile: (function, dynamic) to the function that runs: ``torch.compile`` with a backend, or the function.
        settings: of the training.
        seed: of the batches.
    """

    name = ""
    uses_memory = True

    def __init__(
        self, model: nn.Module, compile: Callable[..., Callable[[Tensor], Tensor]], settings: Settings, seed: int
    ) -> None:
        self.model: Any = model
        self.compiled = compile(model, dynamic=False)
        self.scores = compile(model, dynamic=True)
        self.features = compile(model.features, dynamic=True)  # type: ignore[arg-type]
        self.compile = compile
        self.settings = settings
        self.generator = torch.Generator().manual_seed(seed)
        self.memory: Split | None = None
        self.old: Any = None
        self.seen = 0

    def loss(self, scores: Tensor, x: Tensor, y: Tensor, classes: range) -> Tensor:
        """Of one batch. ``scores`` are those of all classes of all tasks."""
        raise NotImplementedError

    def predict(self, x: Tensor) -> Tensor:
        """Classes, among those seen so far."""
        best: Tensor = self.scores(x)[:, : self.seen].argmax(1)
        return best

    def after_task(self, data: Split) -> None:
        """What a method learns from a task that is over; ``memory`` holds its examples already."""

    def learn(self, data: Split, classes: range, step: Callable[[], None] = lambda: None) -> None:
        """One task: train on it and on what is kept of earlier ones, then keep some of it."""
        train = self.held_out(data)
        rehearsed = train + self.memory if self.memory is not None and self.uses_memory else train
        optimizer = torch.optim.SGD(self.model.parameters(), self.settings.rate, self.settings.momentum)
        batch, total = self.settings.batch, len(rehearsed.y)
        steps = self.settings.epochs * (total // batch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(self.settings.epochs):
            order = torch.randperm(total, generator=self.generator)
            for index in order[: total // batch * batch].split(batch):  # whole batches: one graph serves them
                x, y = rehearsed.x[index], rehearsed.y[index]
                optimizer.zero_grad()
                self.loss(self.compiled(x), x, y, classes).backward()
                optimizer.step()
                schedule.step()
            step()
        self.seen = classes.stop
        self.old = self.compile(deepcopy(self.model).eval(), dynamic=False)
        with torch.no_grad():
            if self.uses_memory:
                self._remember(data)
        self.after_task(data)

    def held_out(self, data: Split) -> Split:
        """The examples of a task that are trained on: all, unless a method needs some for later."""
        return data

    def _remember(self, data: Split) -> None:
        pool = data if self.memory is None else self.memory + data
        kept = None
        for label in range(self.seen):
            own = pool.of(range(label, label + 1))
            index = herding(self.features(own.x), self.settings.memory // self.seen)
            part = Split(own.x[index], own.y[index])
            kept = part if kept is None else kept + part
        self.memory = kept
