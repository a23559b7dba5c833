"""Convolutions as products: x under the window of each output position (im2col), and the sum of such windows (col2im).

    y[l, o]   = Σ_c columns[l, c] w[o, c]          forward
    columns   = unfold(x)                          [L, I·k], L = batch · positions, the last axis fastest
    g_x       = fold(g_y w)                        the adjoint of unfold: overlapping windows add up
    g_w       = g_yᵀ columns

The columns are ordered as the weight [O, I, *kernel] lies in memory, so that its matrix is a view. These are formulas
in PyTorch, traced into the graph: Inductor generates their code, together with the pointwise operations around them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hadamard_fx.window import Window

from .traffic import Expression, Traffic

__all__ = ["columns_traffic", "fold", "images", "rows", "rows_traffic", "unfold", "weight_matrix"]


def unfold(x: Tensor, window: Window, *, channels_last: bool = False) -> Tensor:
    """The columns [L, I · area] of images [batch, I, *extents]; zeros where the window sees padding.

    Args:
        channels_last: pad and slide over a view whose channels come last. The result is the same; the operations are
            others, which keeps a second unfolding of the same x apart from the first.
    """
    first = 1 if channels_last else 2
    tensor = x.movedim(1, -1) if channels_last else x
    padding = [zeros for pad in reversed(window.padding) for zeros in (pad, pad)]
    if any(padding):
        tensor = torch.nn.functional.pad(tensor, [0, 0, *padding] if channels_last else padding)
    for axis, (count, span) in enumerate(zip(window.kernel, window.spans, strict=True), first):
        stride, dilation = window.stride[axis - first], window.dilation[axis - first]
        if count > 1:
            tensor = tensor.unfold(axis, span, stride)[..., ::dilation]
        else:
            tensor = _every(tensor, axis, stride).unsqueeze(-1)
    if not channels_last:
        tensor = tensor.movedim(1, 1 + len(window.kernel))
    return tensor.reshape(-1, x.shape[1] * window.area)


def _every(tensor: Tensor, axis: int, stride: int) -> Tensor:
    """Every element, or each ``stride``-th one, along an axis."""
    return tensor if stride == 1 else tensor[(slice(None),) * axis + (slice(None, None, stride),)]


def fold(columns: Tensor, x: Tensor, window: Window) -> Tensor:
    """Images [batch, I, *extents] in which each column is added to where ``unfold`` would have read it.

    Axis by axis, as a sum over the elements of the kernel, each spread over the image: no element is written twice, and
    the order of the additions is fixed. 16-bit columns are added in float32.

    Args:
        columns: [L, I · area].
        x: images of the result's shape; they are not read.
    """
    batch, channels, *extents = x.shape
    tensor = columns.reshape(batch, *window.positions(extents), channels, *window.kernel)
    tensor = tensor.movedim(1 + len(extents), 1)
    if columns.dtype in (torch.bfloat16, torch.float16):
        tensor = tensor.float()
    for axis, extent in enumerate(extents):
        sides = window.kernel[axis], window.stride[axis], window.padding[axis], window.dilation[axis]
        tensor = _fold_axis(tensor, 2 + axis, 2 + len(extents), extent, *sides)
    return tensor.to(columns.dtype)


def _fold_axis(
    tensor: Tensor, axis: int, offsets: int, extent: int, kernel: int, stride: int, padding: int, dilation: int
) -> Tensor:
    """Positions along ``axis`` and elements of the kernel along the axis ``offsets`` become ``extent`` elements."""
    covered = extent + 2 * padding
    if kernel == stride and dilation == 1:
        tensor = tensor.movedim(offsets, axis + 1).flatten(axis, axis + 1)
        return _padded(tensor, axis, 0, covered - tensor.shape[axis]).narrow(axis, padding, extent)
    length = (tensor.shape[axis] - 1) * stride + 1
    total = None
    for number, part in enumerate(tensor.unbind(offsets)):
        if stride > 1:
            part = _padded(part.unsqueeze(axis + 1), axis + 1, 0, stride - 1).flatten(axis, axis + 1)
            part = part.narrow(axis, 0, length)
        before = number * dilation
        part = _padded(part, axis, before, covered - before - length)
        total = part if total is None else total + part
    assert total is not None
    return total.narrow(axis, padding, extent)


def _padded(tensor: Tensor, axis: int, before: int, behind: int) -> Tensor:
    return torch.nn.functional.pad(tensor, [0, 0] * (tensor.dim() - 1 - axis) + [before, behind])


def rows(images: Tensor) -> Tensor:
    """Images [batch, channels, *extents] as [L, channels]."""
    return images.movedim(1, -1).reshape(-1, images.shape[1])


def images(rows: Tensor, x: Tensor, window: Window) -> Tensor:
    """[L, O] as images [batch, O, *positions]; ``x``, the input of the convolution, gives the shape only."""
    positions = window.positions(x.shape[2:])
    return rows.reshape(x.shape[0], *positions, rows.shape[1]).movedim(-1, 1)


def weight_matrix(weight: Tensor, *, turned: bool = False) -> Tensor:
    """[O, I, *kernel] as [O, I · area], or ``turned``: as [I · area, O], the same where memory need not be moved."""
    return weight.movedim(0, -1).reshape(-1, weight.shape[0]) if turned else weight.reshape(weight.shape[0], -1)


def columns_traffic(
    image: Expression, tokens: Expression, columns: Expression, *, itemsize: int, fold: bool
) -> Traffic:
    """Unfolding reads the image and writes the columns; folding the other way round.

    Args:
        image: elements of x.
        tokens, columns: extents of the matrix.
        itemsize: bytes of an element.
        fold: columns ⇒ image.
    """
    matrix = tokens * columns * itemsize
    read, written = (matrix, image * itemsize) if fold else (image * itemsize, matrix)
    return Traffic("fold" if fold else "unfold", read, written, tokens * columns, "vector")


def rows_traffic(tokens: Expression, channels: Expression, *, itemsize: int) -> Traffic:
    """Images written out as rows: each element is read and written once."""
    moved = tokens * channels * itemsize
    return Traffic("rows", moved, moved, tokens * channels, "vector")
