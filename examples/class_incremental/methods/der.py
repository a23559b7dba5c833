"""DER, dynamically expandable representation (Yan, Xie & He 2021, arXiv 2103.16788)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import Split
from ..expandable import Expandable, Expanded
from ..learner import of, register
from ..scenarios import Task

__all__ = ["DER"]


@register
class DER(Expandable):
    """Every task has a whole feature extractor of its own, which begins as the one before (section 3.2).

    Then the classifier is trained again from scratch on as many examples of each class, the kept ones, with its
    scores divided by a temperature (section 3.4). The paper's channel masks (section 3.3), which prune a part after its
    training, are left out: this is what its tables call "DER w/o P".
    """

    name = "DER"
    TEMPERATURE = 5.0
    """Of the second stage, δ in the paper."""

    def parts(self, body: nn.Module) -> tuple[nn.Module, nn.Module]:
        return nn.Identity(), body

    def after_task(self, task: Task) -> None:
        if not isinstance(self.model, Expanded):
            return
        assert self.memory is not None
        self.model.head.reset_parameters()
        with torch.no_grad():
            features = Split(self.features(self.memory.x), self.memory.y)
        head = self.compile(self.model.head, dynamic=False)

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(of(head(x), range(task.outputs.stop)) / self.TEMPERATURE, y)

        self.fit(self.model.head, features, loss)
