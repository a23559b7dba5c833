"""LwF, iCaRL and BiC, each with the equations of its paper, over any model with ``features``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .data import Split
from .learner import Learner, distillation

__all__ = ["METHODS", "BiC", "ICaRL", "LwF"]


class LwF(Learner):
    """Learning without forgetting (arXiv 1606.09282): no memory; the old model's predictions are kept instead.

    Cross-entropy over the classes of the task, distillation over those before.
    """

    name = "LwF"
    uses_memory = False

    def loss(self, scores: Tensor, x: Tensor, y: Tensor, classes: range) -> Tensor:
        new = F.cross_entropy(scores[:, classes.start : classes.stop], y - classes.start)
        if self.old is None:
            return new
        with torch.no_grad():
            old = self.old(x)[:, : classes.start]
        return new + distillation(scores[:, : classes.start], old, self.settings.temperature)


class ICaRL(Learner):
    """iCaRL (arXiv 1611.07725): a sigmoid per class, distilled for old ones; the nearest mean of exemplars decides."""

    name = "iCaRL"

    def loss(self, scores: Tensor, x: Tensor, y: Tensor, classes: range) -> Tensor:
        target = F.one_hot(y, scores.shape[1]).to(scores.dtype)[:, : classes.stop]
        if self.old is not None:
            with torch.no_grad():
                target[:, : classes.start] = self.old(x)[:, : classes.start].sigmoid()
        losses = F.binary_cross_entropy_with_logits(scores[:, : classes.stop], target, reduction="none")
        return losses.sum(1).mean()

    def after_task(self, data: Split) -> None:
        assert self.memory is not None
        with torch.no_grad():
            features = F.normalize(self.features(self.memory.x), dim=1)
        means = [features[self.memory.y == label].mean(0) for label in range(self.seen)]
        self.means = F.normalize(torch.stack(means), dim=1)

    def predict(self, x: Tensor) -> Tensor:
        return torch.cdist(F.normalize(self.features(x), dim=1), self.means).argmin(1)


class BiC(Learner):
    """Bias correction (arXiv 1905.13260): distillation with the share of old classes, then two numbers for the scores
    of the newest classes, fitted on examples that were not trained on."""

    name = "BiC"
    HELD_OUT = 0.1

    def loss(self, scores: Tensor, x: Tensor, y: Tensor, classes: range) -> Tensor:
        new = F.cross_entropy(scores[:, : classes.stop], y)
        if self.old is None:
            return new
        with torch.no_grad():
            old = self._corrected(self.old(x))[:, : classes.start]
        share = classes.start / classes.stop
        return share * distillation(scores[:, : classes.start], old, self.settings.temperature) + (1 - share) * new

    def held_out(self, data: Split) -> Split:
        """All but a tenth of the task; of the memory the same share serves, balanced by class."""
        self.newest = range(self.seen, int(data.y.max()) + 1)
        cut = int(len(data.y) * (1 - self.HELD_OUT))
        self.validation = Split(data.x[cut:], data.y[cut:])
        return Split(data.x[:cut], data.y[:cut])

    def after_task(self, data: Split) -> None:
        self.correction = None
        if self.newest.start == 0:
            return
        assert self.memory is not None
        old = self.memory.of(range(self.newest.start))
        count = max(1, len(self.validation.y) // len(self.newest))
        balanced = self.validation
        for label in range(self.newest.start):
            own = old.of(range(label, label + 1))
            balanced = balanced + Split(own.x[-count:], own.y[-count:])
        with torch.no_grad():
            scores = self.scores(balanced.x)[:, : self.seen]
        alpha, beta = torch.ones((), requires_grad=True), torch.zeros((), requires_grad=True)
        optimizer = torch.optim.LBFGS([alpha, beta], max_iter=50)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(self._scaled(scores, alpha, beta), balanced.y)
            loss.backward()
            return loss

        optimizer.step(closure)  # type: ignore[arg-type]
        self.correction = (alpha.detach(), beta.detach())

    correction: tuple[Tensor, Tensor] | None = None
    newest = range(0)

    def _scaled(self, scores: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        start, stop = self.newest.start, self.newest.stop
        return torch.cat([scores[:, :start], alpha * scores[:, start:stop] + beta, scores[:, stop:]], 1)

    def _corrected(self, scores: Tensor) -> Tensor:
        return scores if self.correction is None else self._scaled(scores, *self.correction)

    def predict(self, x: Tensor) -> Tensor:
        return self._corrected(self.scores(x))[:, : self.seen].argmax(1)


METHODS: dict[str, type[Learner]] = {method.name: method for method in (LwF, ICaRL, BiC)}
