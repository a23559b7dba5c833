"""How one task is trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """Of the training of one task.

    Attributes:
        milestones: epochs after which the rate falls to a tenth; none: it falls like a cosine.
        memory: examples of earlier tasks that may be kept, all classes together.
        temperature: of the distillation.
    """

    epochs: int = 20
    batch: int = 32
    rate: float = 0.05
    momentum: float = 0.9
    milestones: tuple[int, ...] = ()
    memory: int = 200
    temperature: float = 2.0

    def schedule(self, optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        """Of ``epochs`` epochs that have ``steps`` steps each; to be stepped after every step."""
        if not self.milestones:
            return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs * steps)
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, [epoch * steps for epoch in self.milestones])
