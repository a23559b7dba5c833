"""Models that grow by a part for every task, and what DER and MEMO have in common.

Both freeze all former parts, put the features of all parts side by side, and give the newest one a head of its own
while it learns, which tells the new classes from each other and from all old ones as one.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .learner import Learner, of
from .scenarios import Task

__all__ = ["Expandable", "Expanded"]


class Expanded(nn.Module):
    """Inputs [B, …] to (scores [B, outputs], auxiliary scores [B, 1 + new classes]).

    Args:
        shallow: makes what all parts read, and learns.
        frozen: parts of earlier tasks, from that to features [B, width].
        newest: the part that learns.
        width: of every part.
        outputs: of all tasks.
        new: classes of the task.
    """

    def __init__(
        self, shallow: nn.Module, frozen: list[nn.Module], newest: nn.Module, width: int, outputs: int, new: int
    ) -> None:
        super().__init__()
        self.shallow, self.frozen, self.newest, self.width = shallow, nn.ModuleList(frozen), newest, width
        self.head = nn.Linear(width * (len(frozen) + 1), outputs)
        self.auxiliary = nn.Linear(width, 1 + new)

    def train(self, mode: bool = True) -> Expanded:
        """What is frozen keeps its batch statistics, too."""
        super().train(mode)
        self.frozen.eval()
        return self

    def features(self, x: Tensor) -> Tensor:
        """[B, width · parts], the newest last."""
        shared = self.shallow(x)
        return torch.cat([*(part(shared) for part in self.frozen), self.newest(shared)], 1)

    def scores(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.features(x))
        return scores

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        return self.head(features), self.auxiliary(features[:, -self.width :])


class Expandable(Learner):
    """Grows before every task but the first; the loss is that of DER (arXiv 2103.16788, section 3.2).

    Cross-entropy over all classes so far, plus ``AUXILIARY`` times that of the newest part alone, for which all old
    classes are one.
    """

    AUXILIARY = 1.0
    uses_old = False

    def parts(self, body: Any) -> tuple[nn.Module, nn.Module]:
        """(what all tasks share, what every task has its own of) of a model's body."""
        raise NotImplementedError

    def before_task(self, task: Task) -> None:
        if not task.old:
            self.width = self.model.body.width
            return
        if isinstance(self.model, Expanded):
            shallow, frozen = self.model.shallow, [*self.model.frozen, self.model.newest]
        else:
            shallow, first = self.parts(self.model.body)
            frozen = [first]
        head = self.model.head
        newest = deepcopy(frozen[-1])
        for part in frozen:
            part.requires_grad_(False)
        grown = Expanded(shallow, frozen, newest, self.width, head.out_features, len(task.classes))
        grown.to(head.weight.device)
        with torch.no_grad():
            grown.head.weight[:, : head.in_features] = head.weight
            grown.head.bias.copy_(head.bias)
        self.use(grown)

    def loss(self, made: Any, x: Tensor, y: Tensor, task: Task) -> Tensor:
        known = range(task.outputs.stop)
        if not task.old:
            return F.cross_entropy(of(made, known), y)
        scores, auxiliary = made
        place = torch.clamp(y - task.outputs.start + 1, min=0)
        return F.cross_entropy(of(scores, known), y) + self.AUXILIARY * F.cross_entropy(auxiliary, place)
