"""What every method does: learn a task, keep a few examples of it, predict among some outputs.

A method is a subclass that says what the loss of a batch is, how it predicts, and what it does before and after a task.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import Split
from .exemplars import herd
from .models import Classifier
from .scenarios import Scenario, ScenarioError, Task
from .settings import Settings

__all__ = ["METHODS", "Learner", "distillation", "register"]

BLOCK = 1000
"""Examples that are predicted at once; a range per tensor holds for all of them."""

Compiler = Callable[..., Callable[[Tensor], Any]]


def distillation(scores: Tensor, old_scores: Tensor, temperature: float) -> Tensor:
    """Cross-entropy to the softened predictions of the old model [B, outputs of earlier tasks] (LwF, equation 2)."""
    target = F.softmax(old_scores / temperature, 1)
    return -(target * F.log_softmax(scores / temperature, 1)).sum(1).mean() * temperature**2


def of(scores: Tensor, outputs: range) -> Tensor:
    """The columns of some outputs."""
    return scores[:, outputs.start : outputs.stop]


class Learner:
    """The frame of a method.

    Args:
        model: from inputs to scores [B, outputs of all tasks]; trained in place, in float32, by SGD.
        scenario: what the labels are, and what is asked.
        compile: (function, dynamic) to the function that runs: ``torch.compile`` with a backend, or the function.
        settings: of the training.
        seed: of the batches.
        augment: changes the inputs of a batch before it is trained on.

    Attributes:
        uses_memory, uses_old: examples, or the model as it was after the former task, are kept for the next one.
        scenarios: in which the method works.

    Raises:
        ScenarioError: the method does not work in that scenario.
    """

    name: ClassVar[str] = ""
    uses_memory: ClassVar[bool] = True
    uses_old: ClassVar[bool] = True
    scenarios: ClassVar[tuple[str, ...]] = ("class", "task")

    def __init__(
        self,
        model: Classifier,
        scenario: Scenario,
        compile: Compiler,
        settings: Settings,
        seed: int,
        augment: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        if scenario.name not in self.scenarios:
            able = ", ".join(name for name, method in METHODS.items() if scenario.name in method.scenarios)
            raise ScenarioError(
                f"{self.name} tells classes apart, which {scenario.name}-incremental tasks share; choose the scenario "
                f"{' or '.join(self.scenarios)}, or one of the methods that know {scenario.name}: {able}"
            )
        self.scenario, self.compile, self.settings, self.augment = scenario, compile, settings, augment
        self.generator = torch.Generator().manual_seed(seed)
        self.memory: Split | None = None
        self.old: Any = None
        self.use(model)

    def use(self, model: Any) -> None:
        """Train and ask this model from now on. It has ``features`` and ``scores``; its result goes to ``loss``."""
        self.model = model
        self.compiled = self.compile(model, dynamic=False)
        self.scores = self.compile(model.scores, dynamic=True)
        self.features = self.compile(model.features, dynamic=True)

    def loss(self, made: Any, x: Tensor, y: Tensor, task: Task) -> Tensor:
        """Of one batch.

        Args:
            made: by the model: scores [B, outputs of all tasks], unless the method uses a model of its own.
            x, y: the inputs [B, …] and the outputs [B] that are right.
        """
        raise NotImplementedError

    def predict(self, x: Tensor, among: range) -> Tensor:
        """Outputs [B] for inputs [B, …], decided among some that were learned."""
        best: Tensor = of(self.scores(x), among).argmax(1)
        return best + among.start

    def before_task(self, task: Task) -> None:
        """What a method changes before a task is trained."""

    def after_task(self, task: Task) -> None:
        """What a method learns from a task that is over; ``memory`` holds its examples already."""

    def held_out(self, data: Split) -> Split:
        """The examples of a task that are trained on: all, unless a method needs some for later."""
        return data

    def learn(self, data: Split, task: Task, step: Callable[[], None] = lambda: None) -> None:
        """One task: train on it and on what is kept of earlier ones, then keep some of it.

        Args:
            data: examples with the classes of the dataset.
            step: called after every epoch.
        """
        self.before_task(task)
        train = self.held_out(data)
        rehearsed = train + self.memory if self.memory is not None and self.uses_memory else train

        def loss(x: Tensor, y: Tensor) -> Tensor:
            x = self.augment(x)
            return self.loss(self.compiled(x), x, y, task)

        self.model.train()
        self.fit(self.model, rehearsed, loss, step)
        self.model.eval()
        if self.uses_old:
            self.old = self.compile(deepcopy(self.model), dynamic=False)
        with torch.no_grad():
            if self.uses_memory:
                pool = data if self.memory is None else self.memory + data
                self.memory = herd(pool, task.classes.stop, self.settings.memory, self.features)
        self.after_task(task)

    def fit(
        self,
        model: nn.Module,
        data: Split,
        loss: Callable[[Tensor, Tensor], Tensor],
        step: Callable[[], None] = lambda: None,
    ) -> None:
        """Train what can be trained of ``model`` by SGD. Whole batches only: one graph serves them."""
        settings, total = self.settings, len(data)
        size = min(settings.batch, total)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, settings.rate, settings.momentum)
        schedule = settings.schedule(optimizer, total // size)
        for _ in range(settings.epochs):
            order = torch.randperm(total, generator=self.generator)
            for index in order[: total // size * size].split(size):
                x, y = data.x[index], self.scenario.label(data.y[index])
                optimizer.zero_grad()
                loss(x, y).backward()
                optimizer.step()
                schedule.step()
            step()

    @torch.no_grad()
    def accuracy(self, test: Split, tasks: list[Task]) -> float:
        """Share of the test examples of ``tasks`` that are predicted right, in per cent."""
        right, total = 0, 0
        for classes, among in self.scenario.questions(tasks):
            asked = test.of(classes)
            for x, y in zip(asked.x.split(BLOCK), asked.y.split(BLOCK), strict=True):
                right += int((self.predict(x, among) == self.scenario.label(y)).sum())
            total += len(asked)
        return 100 * right / total


METHODS: dict[str, type[Learner]] = {}


def register(method: type[Learner]) -> type[Learner]:
    """Make a method known by its name."""
    METHODS[method.name] = method
    return method
