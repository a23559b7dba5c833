"""Unfolding and folding against loops over positions, and against what torch's convolution says is their use."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from hadamard_fx.kernels.windows import columns_traffic, fold, images, rows, unfold, weight_matrix
from hadamard_fx.window import Window

WINDOWS = {
    "1x1": (Window((1, 1), (1, 1), (0, 0), (1, 1)), (5, 3)),
    "1x1 every third": (Window((1, 1), (3, 2), (0, 0), (1, 1)), (5, 4)),
    "1x1 padded": (Window((1, 1), (2, 1), (1, 2), (1, 1)), (5, 4)),
    "patches": (Window((2, 3), (2, 3), (0, 0), (1, 1)), (6, 9)),
    "patches with a rest": (Window((2, 3), (2, 3), (0, 0), (1, 1)), (5, 7)),
    "patches of a padded image": (Window((3, 3), (3, 3), (1, 2), (1, 1)), (5, 8)),
    "3x3": (Window((3, 3), (1, 1), (1, 1), (1, 1)), (5, 4)),
    "3x3 stride 2": (Window((3, 3), (2, 2), (1, 1), (1, 1)), (7, 6)),
    "holes": (Window((2, 2), (3, 4), (0, 1), (1, 1)), (8, 9)),
    "dilated": (Window((3, 2), (2, 1), (0, 3), (1, 2)), (7, 5)),
    "1-D": (Window((4,), (2,), (3,), (2,)), (11,)),
    "3-D": (Window((2, 1, 3), (1, 2, 1), (1, 0, 1), (1, 1, 1)), (3, 4, 5)),
}


def by_loops(x: Tensor, window: Window) -> Tensor:
    """x under the window, element by element; None of torch's own unfolding is used."""
    batch, channels, *extents = x.shape
    positions = window.positions(extents)
    lines = []
    for image, *place in itertools.product(range(batch), *map(range, positions)):
        line = []
        for channel, *offset in itertools.product(range(channels), *map(range, window.kernel)):
            at = [
                p * s - pad + o * d
                for p, s, pad, o, d in zip(place, window.stride, window.padding, offset, window.dilation, strict=True)
            ]
            inside = all(0 <= a < extent for a, extent in zip(at, extents, strict=True))
            line.append(x[(image, channel, *at)] if inside else x.new_zeros(()))
        lines.append(torch.stack(line))
    return torch.stack(lines)


@pytest.fixture(params=WINDOWS, ids=lambda name: name.replace(" ", "-"))
def case(request: Any) -> tuple[Window, Tensor]:
    window, extents = WINDOWS[request.param]
    torch.manual_seed(0)
    return window, torch.randint(-9, 10, (2, 3, *extents)).double()


@pytest.mark.parametrize("channels_last", [False, True])
def test_unfold(case: tuple[Window, Tensor], channels_last: bool) -> None:
    window, x = case
    assert torch.equal(unfold(x, window, channels_last=channels_last), by_loops(x, window))


def test_fold_is_the_adjoint(case: tuple[Window, Tensor]) -> None:
    """⟨unfold(x), c⟩ = ⟨x, fold(c)⟩ for every x: the gradient of the loops, in integers."""
    window, x = case
    x = x.requires_grad_()
    expected = by_loops(x, window)
    columns = torch.randint(-9, 10, expected.shape).double()
    expected.backward(columns)
    found = fold(columns, x.detach(), window)
    assert torch.equal(found, x.grad) and found.shape == x.shape


def test_sixteen_bit_columns_are_added_in_float32() -> None:
    window = Window((3,), (1,), (1,), (1,))
    columns = torch.tensor([[0.0, 1.0, 1.0], [2.0**-8, 256.0, 0.0], [2.0**-8, 0.0, 0.0]]).bfloat16()
    exact = fold(columns.float(), torch.empty(1, 1, 3), window)
    assert torch.equal(fold(columns, torch.empty(1, 1, 3), window), exact.bfloat16())


def test_the_products_are_the_convolution(case: tuple[Window, Tensor]) -> None:
    window, x = case
    weight = torch.randint(-9, 10, (4, 3, *window.kernel)).double()
    zeros = [0] * len(window.kernel)
    settings = (list(window.stride), list(window.padding), list(window.dilation), False, zeros, 1)
    y = torch.ops.aten.convolution(x, weight, None, *settings)
    gradient = torch.randint(-9, 10, y.shape).double()
    g_x, g_w, _ = torch.ops.aten.convolution_backward(gradient, x, weight, None, *settings, [True, True, False])
    columns = unfold(x, window)
    assert torch.equal(images(columns @ weight_matrix(weight).t(), x, window), y)
    assert torch.equal(fold(rows(gradient) @ weight_matrix(weight, turned=True).t(), x, window), g_x)
    assert torch.equal((rows(gradient).t() @ columns).reshape(weight.shape), g_w)


def test_traffic_counts_every_element_once() -> None:
    window, extents = WINDOWS["3x3 stride 2"]
    x = torch.zeros(2, 3, *extents)
    columns = unfold(x, window)
    for is_fold in (False, True):
        traffic = columns_traffic(x.numel(), *columns.shape, itemsize=4, fold=is_fold)
        moved = (traffic.written, traffic.read) if is_fold else (traffic.read, traffic.written)
        assert moved == (x.nbytes, columns.nbytes)


def test_a_window_in_words() -> None:
    assert str(Window((3, 3), (2, 2), (1, 0), (1, 1))) == "3×3, stride 2, padding 1×0"
    assert str(Window((1,), (1,), (0,), (2,))) == "1, dilation 2"
