"""How far a (quantised) recurrent matrix is from orthogonal, now and over a training.

‖W Wᵀ − I‖₂ is the largest |σ² − 1| over the singular values σ of W. What a recurrence of T steps does to a vector lies
between σ_min^T and σ_max^T, so the two ends tell of vanishing and of exploding.

Source: QORNN (arXiv 2402.04012), and what its reviewers asked for.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..errors import OptionError

__all__ = ["Orthogonality", "Tracker", "orthogonality"]


@dataclass(frozen=True)
class Orthogonality:
    """Of a square matrix W.

    Attributes:
        gap: ‖W Wᵀ − I‖₂, 0 for an orthogonal matrix.
        smallest: the smallest singular value.
        largest: the largest singular value.
    """

    gap: float
    smallest: float
    largest: float

    def __str__(self) -> str:
        return f"‖W Wᵀ − I‖ {self.gap:.2g}, singular values {self.smallest:.3f}..{self.largest:.3f}"


@torch.no_grad()
def orthogonality(weight: Tensor) -> Orthogonality:
    """From the singular values in float64.

    Args:
        weight: [n, n], any floating dtype.

    Raises:
        OptionError: not a square matrix.
    """
    if weight.ndim != 2 or weight.shape[0] != weight.shape[1]:
        raise OptionError(f"orthogonality: asked of a square matrix, got shape {tuple(weight.shape)}")
    values = torch.linalg.svdvals(weight.double())
    return Orthogonality(float((values.square() - 1).abs().max()), float(values[-1]), float(values[0]))


@dataclass
class Tracker:
    """Records a parametrized matrix of a module, as it is used, once in ``every`` calls.

    Args:
        module: holds the matrix.
        name: of its parameter.
        every: calls of ``record`` for one entry; the SVD costs O(n³).
    """

    module: nn.Module
    name: str = "recurrent"
    every: int = 1
    history: list[tuple[int, Orthogonality]] = field(default_factory=list)
    calls: int = 0

    def record(self) -> None:
        """Call it once a step; training mode and the state of parametrizations stay as they were."""
        if self.calls % self.every == 0:
            self.history.append((self.calls, orthogonality(self._matrix())))
        self.calls += 1

    @torch.no_grad()
    def _matrix(self) -> Tensor:
        if not parametrize.is_parametrized(self.module, self.name):
            return getattr(self.module, self.name)  # type: ignore[no-any-return]
        chain: nn.Module = self.module.parametrizations[self.name]  # type: ignore[index, assignment]
        modes = [(part, part.training) for part in chain.modules()]
        chain.eval()  # Bjorck would improve its vector
        try:
            return getattr(self.module, self.name)  # type: ignore[no-any-return]
        finally:
            for part, mode in modes:
                part.training = mode

    def to_json(self) -> list[dict[str, float]]:
        """One record a row: call, gap, smallest, largest."""
        return [{"step": step, **dataclasses.asdict(value)} for step, value in self.history]
