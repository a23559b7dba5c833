"""Björck orthogonalisation: a latent matrix of any values, and the orthogonal matrix that it stands for.

R is divided by its spectral norm, found by power iterations, and then M ← (1+β) M − β M MᵀM is repeated. One step maps
each singular value s to s (1 + β − β s²) and leaves the singular vectors alone, so the limit is the nearest orthogonal
matrix U Vᵀ of R = U S Vᵀ. With β = ½ every s in (0, √3) converges to 1, quadratically in the end; a small s only grows
by 1.5 a step, hence 15 steps reach what was above about 1/400 of the norm. Autograd runs through all the steps.

Source: Björck and Bowie 1971; QORNN (arXiv 2402.04012), STE-Björck.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import OptionError

__all__ = ["Bjorck", "bjorck", "spectral_norm"]


def spectral_norm(matrix: Tensor, start: Tensor, iterations: int = 3) -> tuple[Tensor, Tensor]:
    """The largest singular value by power iteration, from below.

    Args:
        matrix: [n, m], any floating dtype.
        start: [m], a guess of the leading right singular vector; not zero.
        iterations: each is one product with the matrix and one with its transpose.

    Returns:
        The norm (a scalar, differentiable with respect to ``matrix``; the vectors count as constants, which is exact
        at the fixed point) and the improved guess [m].
    """
    with torch.no_grad():
        right = start
        for _ in range(iterations):
            left = _unit(matrix @ right)
            right = _unit(matrix.mT @ left)
        left = _unit(matrix @ right)
    return torch.dot(left, matrix @ right), right


def _unit(vector: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(vector)
    return vector / norm.clamp_min(torch.finfo(vector.dtype).tiny)


def bjorck(matrix: Tensor, steps: int = 15, beta: float = 0.5) -> Tensor:
    """M ← (1+β) M − β M MᵀM, ``steps`` times.

    Args:
        matrix: [n, m] with singular values below √3 for β = ½.
        steps: 15 in the paper.
        beta: at most ½, or the iteration overshoots.

    Returns:
        [n, m] of the same dtype; the smaller side is orthonormal once it has converged.
    """
    for _ in range(steps):
        # The Gram matrix of the smaller side: the two forms are equal, M MᵀM = (M Mᵀ) M = M (MᵀM).
        wide = matrix.shape[0] < matrix.shape[1]
        cubic = (matrix @ matrix.mT) @ matrix if wide else matrix @ (matrix.mT @ matrix)
        matrix = (1 + beta) * matrix - beta * cubic
    return matrix


class Bjorck(nn.Module):
    """Parametrization (``torch.nn.utils.parametrize``): users see an orthogonal matrix, the optimizer the latent R.

    The leading singular vector is kept between calls and improved in training mode, so that three iterations a step
    stay close to the norm while R changes slowly; evaluation changes no state.

    Args:
        shape: (n, m) of the latent matrix.
        iterations: of the power method.
        steps: of Björck's iteration.
        beta: its β, in (0, ½].

    Raises:
        OptionError: an argument out of range, or a latent of another shape.
    """

    vector: Tensor

    def __init__(
        self,
        shape: tuple[int, int] | torch.Size,
        iterations: int = 3,
        steps: int = 15,
        beta: float = 0.5,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if len(shape) != 2 or min(shape) < 1:
            raise OptionError(f"Bjorck: the matrix must have two axes that are not empty, got shape {tuple(shape)}")
        if iterations < 1 or steps < 1 or not 0 < beta <= 0.5:
            raise OptionError(
                "Bjorck: iterations and steps must be at least 1 and beta in (0, 0.5], "
                f"got iterations={iterations}, steps={steps}, beta={beta}"
            )
        self.shape, self.iterations, self.steps, self.beta = tuple(shape), iterations, steps, beta
        generator = torch.Generator().manual_seed(0)  # a fixed start: two models of one seed are the same
        start = torch.randn(shape[1], generator=generator, dtype=torch.float64)
        self.register_buffer("vector", _unit(start).to(dtype or torch.get_default_dtype()))

    def forward(self, latent: Tensor) -> Tensor:
        """[n, m] latent → [n, m] orthogonal, of the same dtype."""
        if tuple(latent.shape) != self.shape:
            raise OptionError(f"Bjorck: made for shape {self.shape}, got {tuple(latent.shape)}")
        norm, vector = spectral_norm(latent, self.vector.to(latent.dtype), self.iterations)
        if self.training:
            with torch.no_grad():
                self.vector.copy_(vector)
        return bjorck(latent / norm, self.steps, self.beta)

    def right_inverse(self, matrix: Tensor) -> Tensor:
        """Assigning a matrix makes it the latent one: an orthogonal matrix is its own."""
        return matrix
