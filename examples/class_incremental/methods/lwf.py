"""LwF, learning without forgetting (Li & Hoiem 2016, arXiv 1606.09282)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..learner import Learner, distillation, of, register
from ..scenarios import Task

__all__ = ["LwF"]


@register
class LwF(Learner):
    """No memory; the old model's predictions are kept instead.

    Cross-entropy over the outputs of the task, distillation over each group of those before.
    """

    name = "LwF"
    uses_memory = False
    scenarios = ("class", "task", "domain")

    def loss(self, made: Tensor, x: Tensor, y: Tensor, task: Task) -> Tensor:
        total = F.cross_entropy(of(made, task.outputs), y - task.outputs.start)
        if task.old:
            with torch.no_grad():
                old = self.old(x)
            for group in task.old:
                total = total + distillation(of(made, group), of(old, group), self.settings.temperature)
        return total
