"""iCaRL (Rebuffi et al. 2017, arXiv 1611.07725)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..learner import Learner, of, register
from ..scenarios import Task

__all__ = ["ICaRL"]


@register
class ICaRL(Learner):
    """A sigmoid per class, distilled for old ones; the nearest mean of exemplars decides."""

    name = "iCaRL"

    def loss(self, made: Tensor, x: Tensor, y: Tensor, task: Task) -> Tensor:
        known = range(task.outputs.stop)
        target = of(F.one_hot(y, made.shape[1]).to(made.dtype), known)
        if task.old:
            with torch.no_grad():
                target[:, : task.outputs.start] = self.old(x)[:, : task.outputs.start].sigmoid()
        losses = F.binary_cross_entropy_with_logits(of(made, known), target, reduction="none")
        return losses.sum(1).mean()

    def after_task(self, task: Task) -> None:
        assert self.memory is not None
        with torch.no_grad():
            features = F.normalize(self.features(self.memory.x), dim=1)
        means = [features[self.memory.y == label].mean(0) for label in range(task.outputs.stop)]
        self.means = F.normalize(torch.stack(means), dim=1)

    def predict(self, x: Tensor, among: range) -> Tensor:
        means = self.means[among.start : among.stop]
        return torch.cdist(F.normalize(self.features(x), dim=1), means).argmin(1) + among.start
