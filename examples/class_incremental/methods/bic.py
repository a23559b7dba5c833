"""BiC, bias correction (Wu et al. 2019, arXiv 1905.13260)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data import Split
from ..learner import Learner, distillation, of, register
from ..scenarios import Task

__all__ = ["BiC"]


@register
class BiC(Learner):
    """Distillation with the share of old classes, then two numbers for the scores of the newest classes, fitted on
    examples of them that were not trained on and as many of every old class.

    The paper keeps validation examples of old classes, too, out of the training; here those come from the memory,
    which is rehearsed.
    """

    name = "BiC"
    HELD_OUT = 0.1

    correction: tuple[Tensor, Tensor] | None = None
    newest = range(0)

    def loss(self, made: Tensor, x: Tensor, y: Tensor, task: Task) -> Tensor:
        known, before = range(task.outputs.stop), range(task.outputs.start)
        new = F.cross_entropy(of(made, known), y)
        if not task.old:
            return new
        with torch.no_grad():
            old = of(self._corrected(self.old(x)), before)
        share = len(before) / len(known)
        return share * distillation(of(made, before), old, self.settings.temperature) + (1 - share) * new

    def held_out(self, data: Split) -> Split:
        """All but a tenth of the task."""
        cut = int(len(data) * (1 - self.HELD_OUT))
        self.validation = Split(data.x[cut:], data.y[cut:])
        return Split(data.x[:cut], data.y[:cut])

    def after_task(self, task: Task) -> None:
        self.correction, self.newest = None, task.outputs
        if not task.old:
            return
        assert self.memory is not None
        count = max(1, len(self.validation) // len(self.newest))
        balanced = self.validation
        for label in range(self.newest.start):
            own = self.memory.of(range(label, label + 1))
            balanced = balanced + Split(own.x[-count:], own.y[-count:])
        with torch.no_grad():
            scores = of(self.scores(balanced.x), range(self.newest.stop))
        alpha = torch.ones((), device=scores.device, requires_grad=True)
        beta = torch.zeros((), device=scores.device, requires_grad=True)
        optimizer = torch.optim.LBFGS([alpha, beta], max_iter=50)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(self._scaled(scores, alpha, beta), balanced.y)
            loss.backward()
            return loss

        optimizer.step(closure)
        self.correction = (alpha.detach(), beta.detach())

    def _scaled(self, scores: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        start, stop = self.newest.start, self.newest.stop
        return torch.cat([scores[:, :start], alpha * scores[:, start:stop] + beta, scores[:, stop:]], 1)

    def _corrected(self, scores: Tensor) -> Tensor:
        return scores if self.correction is None else self._scaled(scores, *self.correction)

    def predict(self, x: Tensor, among: range) -> Tensor:
        return of(self._corrected(self.scores(x)), among).argmax(1) + among.start
