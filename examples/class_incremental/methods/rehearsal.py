"""The two simplest methods: train on, and train on with a few old examples. What the others must beat."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..learner import Learner, of, register
from ..scenarios import Task

__all__ = ["FineTuning", "Rehearsal"]


@register
class Rehearsal(Learner):
    """Cross-entropy over all outputs so far, on the examples of the task and those that were kept."""

    name = "Rehearsal"
    uses_old = False
    scenarios = ("class", "task", "domain")

    def loss(self, made: Tensor, x: Tensor, y: Tensor, task: Task) -> Tensor:
        return F.cross_entropy(of(made, range(task.outputs.stop)), y)


@register
class FineTuning(Rehearsal):
    """The same without memory: nothing is done against forgetting."""

    name = "Fine-tuning"
    uses_memory = False
