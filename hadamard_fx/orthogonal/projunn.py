"""projUNN: gradient steps that stay on the orthogonal matrices, in O(n²) a step instead of O(n³).

The update −ηG of an orthogonal W is replaced by the nearest matrix of rank one, a bᵀ. With u = Wᵀa,

- projUNN-D goes to W + a bᵀ = W (I + u bᵀ) and then to the nearest orthogonal matrix, W·polar(I + u bᵀ);
- projUNN-T follows the geodesic, W·exp(½ (u bᵀ − b uᵀ)), that is W·exp(½ (Wᵀ a bᵀ − b aᵀ W)).

Both right factors are the identity off the plane of u and b: with Q [n, 2] an orthonormal basis of it, W moves by
(W Q)(P − I) Qᵀ where P is 2 × 2, a polar factor or a rotation, and has a closed form.

Source: projUNN (arXiv 2203.05483); QORNN (arXiv 2402.04012), STE-projUNN, takes G at the quantised W.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError
from .bjorck import bjorck

__all__ = ["RECURRENT_DIVISOR", "ProjUNN", "direct", "rank_one", "tangent"]

RECURRENT_DIVISOR = 32.0
"""The recurrent learning rate is that of the other parameters divided by this (QORNN; projUNN's experiments)."""


def rank_one(matrix: Tensor, iterations: int | None = 4) -> tuple[Tensor, Tensor]:
    """a [n] and b [m] with ``a bᵀ`` the best approximation of ``matrix`` [n, m] of rank one.

    Args:
        iterations: of the power method, started at the longest row, O(n m) each; None for the SVD, O(n³).

    Returns:
        a carries the length, b has norm 1 (both are zero where the matrix is).
    """
    if iterations is None:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return left[:, 0] * values[0], right[0] * (values[0] > 0)
    b = _unit(matrix[torch.linalg.vector_norm(matrix, dim=1).argmax()])
    for _ in range(iterations):
        b = _unit(matrix.mT @ (matrix @ b))
    return matrix @ b, b


def _unit(vector: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(vector)
    # The square of a very small gradient underflows: zero is then the direction, not a quotient of nothing.
    # The least normal number keeps the branch that is not taken finite.
    found: Tensor = torch.where(norm > 0, vector / norm.clamp_min(torch.finfo(vector.dtype).tiny), 0.0)
    return found


def _plane(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Q [n, 2] with orthonormal columns (zero where the span is smaller), and both vectors' coordinates [2]."""
    q1 = _unit(first)
    along = torch.dot(q1, second)
    rest = second - along * q1
    rest = rest - torch.dot(q1, rest) * q1  # again: nearly parallel vectors leave a rest of rounding errors
    length = torch.linalg.vector_norm(rest)
    noise = 8 * torch.finfo(second.dtype).eps * torch.linalg.vector_norm(second)
    q2 = torch.where(length > noise, _unit(rest), torch.zeros_like(rest))
    zero = torch.zeros_like(along)
    return (
        torch.stack([q1, q2], 1),
        torch.stack([torch.dot(q1, first), zero]),
        torch.stack([along, torch.dot(q2, second)]),
    )


def _polar(m: Tensor) -> Tensor:
    """Nearest orthogonal matrix to a 2 × 2 matrix: M ± cof M, normed; the sign is that of the determinant.

    M + cof M is a multiple of a rotation, M − cof M of a reflection. The one of the determinant's sign vanishes for
    M = 0 only.
    """
    cofactors = torch.stack([torch.stack([m[1, 1], -m[1, 0]]), torch.stack([-m[0, 1], m[0, 0]])])
    determinant = m[0, 0] * m[1, 1] - m[0, 1] * m[1, 0]
    found = torch.where(determinant >= 0, m + cofactors, m - cofactors)
    length: Tensor = torch.linalg.vector_norm(found[0])
    return found / length


def direct(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """projUNN-D: the orthogonal matrix nearest to ``weight + a bᵀ``.

    Args:
        weight: [n, n], orthogonal.
        a: [n].
        b: [n].

    Returns:
        [n, n]. Where I + u bᵀ has a negative determinant the nearest orthogonal matrix has the other one's sign.
    """
    basis, u, v = _plane(weight.mT @ a, b)
    eye = torch.eye(2, dtype=weight.dtype, device=weight.device)
    return weight + (weight @ basis) @ (_polar(eye + torch.outer(u, v)) - eye) @ basis.mT


def tangent(weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """projUNN-T: ``weight · exp(½ (Wᵀ a bᵀ − b aᵀ W))``, a rotation in the plane of Wᵀa and b.

    Args:
        weight: [n, n], orthogonal.
        a: [n].
        b: [n].

    Returns:
        [n, n], with the determinant of ``weight``.
    """
    basis, u, v = _plane(weight.mT @ a, b)
    angle = 0.5 * (u[0] * v[1] - u[1] * v[0])
    cos, sin = torch.cos(angle) - 1, torch.sin(angle)
    turn = torch.stack([torch.stack([cos, sin]), torch.stack([-sin, cos])])
    return weight + (weight @ basis) @ turn @ basis.mT


_VARIANTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"D": direct, "T": tangent}


class ProjUNN(torch.optim.Optimizer):
    """The optimizer of orthogonal parameters; the other parameters need one of their own.

    Args:
        params: square orthogonal matrices, or groups of them.
        lr: the learning rate of the *other* parameters; it is divided by ``divisor`` here.
        variant: ``"D"`` (direct projection) or ``"T"`` (tangent space).
        iterations: of the power method for the rank-one approximation, None for the SVD.
        divisor: of the learning rate.
        alpha: if positive, the gradient is first divided by the root of its running mean square with that decay, as
            RMSprop does, and the quotient is what is approximated; 0 takes the gradient as it is.
        refresh: steps between two Björck steps, O(n³), that take away the rounding errors of the products; 0 for never.

    Raises:
        OptionError: an argument out of range, or a parameter that is not square or not orthogonal.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        variant: str = "D",
        iterations: int | None = 4,
        divisor: float = RECURRENT_DIVISOR,
        alpha: float = 0.99,
        refresh: int = 256,
    ) -> None:
        if variant not in _VARIANTS:
            raise OptionError(f"ProjUNN: variant must be one of {', '.join(_VARIANTS)}, got {variant!r}")
        if lr < 0 or divisor <= 0 or not 0 <= alpha < 1 or refresh < 0 or (iterations is not None and iterations < 1):
            raise OptionError(
                "ProjUNN: lr and refresh must not be negative, divisor positive, alpha in [0, 1), iterations at least "
                f"1 or None, got {lr=}, {refresh=}, {divisor=}, {alpha=}, {iterations=}"
            )
        defaults = {
            "lr": lr,
            "variant": variant,
            "iterations": iterations,
            "divisor": divisor,
            "alpha": alpha,
            "refresh": refresh,
        }
        super().__init__(params, defaults)
        for group in self.param_groups:
            for weight in group["params"]:
                _check_orthogonal(weight)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step for every parameter that has a gradient; returns what ``closure`` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, group)
        return loss

    def _update(self, weight: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        state["step"] = state.get("step", 0) + 1
        gradient = weight.grad
        assert gradient is not None
        if group["alpha"]:
            square = state.setdefault("square", torch.zeros_like(weight))
            square.mul_(group["alpha"]).addcmul_(gradient, gradient, value=1 - group["alpha"])
            # RMSprop's mean starts at zero; without the correction the first steps would be ten times too long.
            mean = square / (1 - group["alpha"] ** state["step"])
            gradient = gradient / (mean.sqrt() + 1e-8)
        a, b = rank_one(gradient, group["iterations"])
        moved = _VARIANTS[group["variant"]](weight, -group["lr"] / group["divisor"] * a, b)
        if group["refresh"] and state["step"] % group["refresh"] == 0:
            moved = bjorck(moved, steps=1)
        weight.copy_(moved)


def _check_orthogonal(weight: Tensor) -> None:
    if weight.ndim != 2 or weight.shape[0] != weight.shape[1]:
        raise OptionError(f"ProjUNN: a parameter must be a square matrix, got shape {tuple(weight.shape)}")
    with torch.no_grad():
        eye = torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        gap = float((weight @ weight.mT - eye).abs().max())
    if not gap < 1e-3:
        raise OptionError(
            f"ProjUNN: a parameter is not orthogonal (an entry of W Wᵀ − I is {gap:.2g}); "
            "start it with torch.nn.init.orthogonal_"
        )
