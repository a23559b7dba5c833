"""Convolutions against the equations in float64: HOT's and HDQT's products over x under the window, written from the
papers. Integers are equal, bit for bit; what follows from them agrees within float32.

A value that lies on the boundary of two integers may go either way in float32, and is then no question of equations:
``without_boundaries`` draws inputs until none lies there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from harness import ratio, traced
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

NEAREST = {"rounding": "nearest"}
HOT: dict[str, Any] = {"profile": "hot", "grad_input": NEAREST, "grad_weight": {**NEAREST, "signs": "none"}}
HDQT: dict[str, Any] = {
    "profile": "hdqt",
    "grad_input": {"kind": "saturating_grad_input", **NEAREST},
    "grad_weight": {"kind": "saturating_grad_weight", "input_rounding": "nearest", **NEAREST},
}
CLOSE = 1e-6
"""RMS ratio of float32 products of equal integers: two scales and a sum of at most a few dozen terms, each within
2⁻²⁴ ≈ 6e-8."""

# inputs, outputs, kernel, stride, padding, dilation, image
CASES: dict[str, tuple[Any, ...]] = {
    "1x1": (5, 6, (1, 1), 1, 0, 1, (5, 3)),
    "1x1 stride 2": (5, 6, (1, 1), 2, 0, 1, (7, 5)),
    "patches": (2, 7, (2, 2), 2, 0, 1, (6, 4)),
    "patches with a rest": (2, 7, (2, 3), (2, 3), 0, 1, (5, 11)),
    "3x3": (3, 5, (3, 3), 1, 1, 1, (5, 4)),
    "3x3 stride 2": (3, 17, (3, 3), 2, 1, 1, (7, 5)),
    "3x2 dilated": (2, 5, (3, 2), (2, 1), (0, 3), (1, 2), (7, 5)),
    "4x4 overlapping by one": (2, 3, (4, 4), 3, 2, 1, (8, 7)),
    "1-D": (3, 5, (3,), 1, 1, 1, (9,)),
    "1-D stride 2, dilated": (3, 5, (4,), 2, 3, 2, (13,)),
    "3-D": (2, 3, (2, 1, 3), (1, 2, 1), (1, 0, 1), 1, (3, 4, 3)),
}
KINDS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def columns(x: Tensor, layer: Any) -> Tensor:
    """x under the window [L, I·k]: one slice of the padded image for each element of the kernel."""
    padding = [pad for size in reversed(layer.padding) for pad in (size, size)]
    padded = nn.functional.pad(x, padding)
    axes = list(zip(padded.shape[2:], layer.kernel_size, layer.stride, layer.dilation, strict=True))
    counts = [(extent - (k - 1) * d - 1) // s + 1 for extent, k, s, d in axes]
    parts = []
    for offset in itertools.product(*(range(k) for _, k, _, _ in axes)):
        starts = [o * d for o, (_, _, _, d) in zip(offset, axes, strict=True)]
        steps = zip(starts, counts, axes, strict=True)
        parts.append(padded[(..., *(slice(b, b + (n - 1) * s + 1, s) for b, n, (_, _, s, _) in steps))])
    under = torch.stack(parts, 2)  # [B, I, k, *positions]
    return under.flatten(1, 2).movedim(1, -1).flatten(0, -2)


def walsh(order: int) -> Tensor:
    """Sylvester's matrix with its rows sorted by their sign changes."""
    matrix = sylvester(order)
    return matrix[(matrix[:, 1:] != matrix[:, :-1]).sum(1).argsort()]


def sylvester(order: int) -> Tensor:
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < order:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), matrix)
    return matrix


class Reference:
    """The products of one layer, the integers that they multiply, and how near a boundary any value came."""

    def __init__(self) -> None:
        self.margin = 1.0
        self.integers: dict[str, tuple[Tensor, Tensor]] = {}

    def nearest(self, v: Tensor) -> Tensor:
        self.margin = min(self.margin, float(((v - v.floor()) - 0.5).abs().min()))
        return v.round()


class Hot(Reference):
    """HOT, section 3: g_x = Q4(g_y B) Q4(Bᵀ w), g_w = Q8(Ĥ g_y)ᵀ Q8(Ĥ x), order 16, rank 8; a forward of 8 bits."""

    def quantised(self, rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        """Integers of rows that are transformed already, one scale for each; a window over padding alone is zero."""
        scale = rows.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        scale = torch.where(scale == 0, 1.0, scale)
        return self.nearest(rows / scale), scale

    def product(self, name: str, left: Tensor, right: Tensor, bits: int, rank: int = 16) -> Tensor:
        """left [M, K] · right [N, K]ᵀ, both transformed along K by blocks of 16."""
        kept = []
        for rows in (left, right):
            blocks = nn.functional.pad(rows, (0, -rows.shape[1] % 16)).unflatten(1, (-1, 16))
            kept.append(self.quantised((blocks @ walsh(16)[:rank].t()).flatten(1), bits))
        (a, scale_a), (b, scale_b) = kept
        self.integers[name] = a, b
        return (a @ b.t()) * scale_a * scale_b.t() / 16

    def run(self, layer: Any, x: Tensor, gradient: Tensor, forward: bool) -> dict[str, Tensor]:
        x = x.double().requires_grad_()
        under, g_y = columns(x, layer), gradient.double().movedim(1, -1).flatten(0, -2)
        weight, shape = layer.weight.detach().double().flatten(1), gradient.movedim(1, -1).shape
        under.backward(self.product("g_x", g_y, weight.t(), 4))
        g_w = self.product("g_w", g_y.t(), under.detach().t(), 8, rank=8)
        y = self.product("y", under.detach(), weight, 8) if forward else under.detach() @ weight.t()
        y = (y + layer.bias.detach().double()).view(shape).movedim(-1, 1)
        return {"y": y, "x": x.grad, "weight": g_w.view_as(layer.weight), "bias": g_y.sum(0)}  # type: ignore[dict-item]


class Hdqt(Reference):
    """HDQT: 4 bits, α = 0.975, tiles of 32, sums that saturate at 8 bits; x̂ and ŵ are the forward's integers."""

    def rounded(self, v: Tensor, unsigned: bool = False) -> tuple[Tensor, Tensor]:
        end = 0.975 * v.abs().max()
        positive = unsigned and bool(v.min() >= 0)
        step = end / (15 if positive else 7)
        return self.nearest(v.clamp(0 if positive else -end, end) / step), step

    def product(self, name: str, sides: tuple[Tensor, Tensor], scales: Any) -> Tensor:
        """Both sides transformed along the last axis by the largest power of two that divides it, one clamp."""
        order = sides[0].shape[1] & -sides[0].shape[1]
        (a, step_a), (b, step_b) = (self.rounded((v.reshape(-1, order) @ sylvester(order)).view_as(v)) for v in sides)
        self.integers[name] = a, b
        return (a @ b.t()).clamp(-127, 127) * step_a * step_b * scales / order

    def run(self, layer: Any, x: Tensor, gradient: Tensor, forward: bool) -> dict[str, Tensor]:
        x = x.double().requires_grad_()
        under, g_y = columns(x, layer), gradient.double().movedim(1, -1).flatten(0, -2)
        (xq, sx), (wq, sw) = self.rounded(under.detach(), True), self.rounded(layer.weight.detach().double().flatten(1))
        sums = sum((a @ b.t()).clamp(-127, 127) for a, b in zip(xq.split(32, 1), wq.split(32, 1), strict=True))
        y = (sx * sw * sums + layer.bias.detach().double()).view(gradient.movedim(1, -1).shape).movedim(-1, 1)
        under.backward(self.product("g_x", (g_y, wq.t()), sw))
        g_w = self.product("g_w", (g_y.t(), xq.t()), sx)
        return {"y": y, "x": x.grad, "weight": g_w.view_as(layer.weight), "bias": g_y.sum(0)}  # type: ignore[dict-item]


class Multiplied(TorchDispatchMode):
    """The integers of every product of this project, in the order in which they are multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func) in ("hadamard.quantized_mm.default", "hadamard.saturating_mm.default"):
            self.seen.append(args[:2])
        return func(*args, **(kwargs or {}))


@contextmanager
def multiplied() -> Iterator[list[tuple[Tensor, Tensor]]]:
    mode = Multiplied()
    with mode:
        yield mode.seen


def drawn(case: str, seed: int, positive: bool) -> tuple[Any, Tensor, Tensor]:
    """A layer, x and g_y."""
    inputs, outputs, kernel, stride, padding, dilation, image = CASES[case]
    torch.manual_seed(seed)
    layer = KINDS[len(kernel)](inputs, outputs, kernel, stride, padding, dilation)
    x = torch.randn(5, inputs, *image)
    x = x.relu() if positive else x
    return layer, x, torch.randn_like(layer(x).detach())


def without_boundaries(
    case: str, made: Callable[[], Reference], forward: bool, positive: bool
) -> tuple[Any, Tensor, Tensor, Any, dict[str, Tensor]]:
    """The first draw none of whose values is within 1e-4 of a boundary: float32 puts 127 off by less than 4e-5."""
    for seed in range(200):
        layer, x, gradient = drawn(case, seed, positive)
        reference: Any = made()
        expected = reference.run(layer, x, gradient, forward)
        if reference.margin > 1e-4:
            return layer, x, gradient, reference, expected
    raise AssertionError("every draw has a value on a boundary")


def same_integers(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> bool:
    """Equal; what the kernels pad a line with is zero."""
    pairs = list(zip(found, expected, strict=True))
    if any(len(f) != len(e) or f.shape[1] < e.shape[1] for f, e in pairs):
        return False
    equal = all(torch.equal(f[:, : e.shape[1]].double(), e) for f, e in pairs)
    return equal and not any(f[:, e.shape[1] :].any() for f, e in pairs)


@pytest.mark.parametrize("case", CASES, ids=lambda name: name.replace(" ", "-"))
@pytest.mark.parametrize("system", ["hot", "hot forward", "hdqt"])
def test_all_products_are_the_equations(case: str, system: str) -> None:
    made, options, forward = {
        "hot": (Hot, HOT, False),
        "hot forward": (Hot, {**HOT, "forward": "hadamard8"}, True),
        "hdqt": (Hdqt, HDQT, True),
    }[system]
    layer, x, gradient, reference, expected = without_boundaries(case, made, forward, positive="3x3" in case)
    compiled, trace = traced(layer, options)
    x.requires_grad_()
    y = compiled(x)
    with multiplied() as seen:  # of the backward: torch compiles nothing under such a mode
        y.backward(gradient)
    if not forward:
        assert torch.equal(y, layer(x)), "the forward is torch's own, bit for bit"
    found = {"y": y.detach(), "x": x.grad, "weight": layer.weight.grad, "bias": layer.bias.grad}
    ratios = {name: ratio(found[name], expected[name]) for name in expected}
    print(ratios)
    assert max(ratios.values()) < CLOSE
    assert len(seen) + forward == len([d for d in trace.decisions if d.rewritten])
    for name in ("g_x", "g_w"):
        assert any(same_integers(pair, reference.integers[name]) for pair in seen), name
