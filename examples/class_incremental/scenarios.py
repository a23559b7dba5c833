"""Three questions that may be asked after a sequence of tasks (van de Ven & Tolias 2019, arXiv 1904.07734, table 1).

- class-incremental: which of all classes so far? The default, and what HDQT (arXiv 2310.03675) measures.
- task-incremental: which of the classes of a task that is named? Every task has outputs of its own.
- domain-incremental: which place in its task, whatever the task (digits two at a time: even or odd)? All tasks share
  the same outputs. That is the paper's "split" protocol; tasks must be of equal size for it.

A scenario says what the labels are, which outputs exist, and among which of them an example is decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from hadamard_fx.errors import HadamardError

__all__ = ["SCENARIOS", "ClassIncremental", "DomainIncremental", "Scenario", "ScenarioError", "Task", "TaskIncremental"]


class ScenarioError(HadamardError, ValueError):
    """The scenario does not fit the classes, or the method does not work in it."""


@dataclass(frozen=True)
class Task:
    """What a method is told of a task.

    Attributes:
        classes: of the dataset.
        outputs: of the model, those of the task's labels.
        old: outputs of earlier tasks, in groups that are decided within themselves; empty for the first task.
    """

    classes: range
    outputs: range
    old: tuple[range, ...]


@dataclass(frozen=True)
class Scenario:
    """Class-incremental learning is the frame; the other two change what they must.

    Attributes:
        classes: of the dataset.
        each: classes of a task; what is left over joins the last task, since one class alone is no task.

    Raises:
        ScenarioError: a task would have fewer than two classes.
    """

    name: ClassVar[str] = ""
    classes: int
    each: int

    def __post_init__(self) -> None:
        if not 2 <= self.each <= self.classes:
            raise ScenarioError(f"a task has 2 to {self.classes} classes, all that there are; got {self.each}")

    @property
    def outputs(self) -> int:
        """Scores that the model computes."""
        return self.classes

    def ranges(self) -> list[range]:
        """The classes of each task."""
        count = self.classes // self.each
        stops = [*(self.each * number for number in range(1, count)), self.classes]
        return [range(start, stop) for start, stop in zip([0, *stops[:-1]], stops, strict=True)]

    def label(self, y: Tensor) -> Tensor:
        """The outputs [N] that classes [N] stand for."""
        return y

    def tasks(self) -> list[Task]:
        """In the order in which they are learned."""
        ranges = self.ranges()
        return [Task(own, self._own(own), self._old(ranges[:number])) for number, own in enumerate(ranges)]

    def questions(self, tasks: Sequence[Task]) -> list[tuple[range, range]]:
        """After ``tasks``: (classes whose examples are asked, outputs among which they are decided)."""
        raise NotImplementedError

    def _own(self, own: range) -> range:
        return own

    def _old(self, before: Sequence[range]) -> tuple[range, ...]:
        raise NotImplementedError


class ClassIncremental(Scenario):
    name = "class"

    def questions(self, tasks: Sequence[Task]) -> list[tuple[range, range]]:
        known = range(tasks[-1].classes.stop)
        return [(known, known)]

    def _old(self, before: Sequence[range]) -> tuple[range, ...]:
        return (range(before[-1].stop),) if before else ()


class TaskIncremental(Scenario):
    name = "task"

    def questions(self, tasks: Sequence[Task]) -> list[tuple[range, range]]:
        return [(task.classes, task.outputs) for task in tasks]

    def _old(self, before: Sequence[range]) -> tuple[range, ...]:
        return tuple(before)


class DomainIncremental(Scenario):
    name = "domain"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes % self.each:
            raise ScenarioError(
                f"domain-incremental tasks share their outputs, so all need the same number of classes: "
                f"{self.classes} is no multiple of {self.each}; choose a divisor of it, or another scenario"
            )

    @property
    def outputs(self) -> int:
        return self.each

    def label(self, y: Tensor) -> Tensor:
        return y % self.each

    def questions(self, tasks: Sequence[Task]) -> list[tuple[range, range]]:
        return [(range(tasks[-1].classes.stop), range(self.each))]

    def _own(self, own: range) -> range:
        return range(self.each)

    def _old(self, before: Sequence[range]) -> tuple[range, ...]:
        return (range(self.each),) if before else ()


_KINDS: tuple[type[Scenario], ...] = (ClassIncremental, TaskIncremental, DomainIncremental)
SCENARIOS = {kind.name: kind for kind in _KINDS}
