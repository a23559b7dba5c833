"""LBP-WHT: both gradients from the low frequencies of the tokens' grid; see ``hadamard_fx.low_pass``.

Only B x lives between forward and backward.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.fx as fx
from torch import Tensor

from hadamard_fx.cost_model.device_profile import DeviceProfile
from hadamard_fx.cost_model.roofline import seconds
from hadamard_fx.kernels.traffic import Traffic
from hadamard_fx.kernels.walsh import walsh
from hadamard_fx.low_pass import LowPass
from hadamard_fx.plan import Cost, Gemm, Role

from ..editing import SAVE, GraphEditor, inherit_recomputation
from ..find_gemms import operands
from ..joint_graph import strip_transpose
from ..rule import SchemeRule, itemsize, register_rule, why_not_quantised

__all__ = ["coefficients", "image"]


def _basis(scheme: LowPass, like: Tensor) -> Tensor:
    """The kept Walsh functions of a tile [functions, order²], orthonormal."""
    rows = walsh(scheme.order, like.device, like.dtype)
    products = [(rows[i][:, None] * rows[j][None, :]).reshape(1, -1) for i, j in scheme.functions]
    return torch.cat(products) / scheme.order


def _tiles(scheme: LowPass) -> tuple[int, int]:
    return -(-scheme.height // scheme.order), -(-scheme.width // scheme.order)


def coefficients(x: Tensor, scheme: LowPass) -> Tensor:
    """B x: [images · tokens, C] → [images · coefficients, C], in float32 between."""
    channels, order = x.shape[1], scheme.order
    down, across = _tiles(scheme)
    images = x.reshape(-1, scheme.tokens, channels).float()
    grid = images[:, scheme.prefix :].reshape(-1, scheme.height, scheme.width, channels)
    edges = (0, 0, 0, across * order - scheme.width, 0, down * order - scheme.height)
    tiles = torch.nn.functional.pad(grid, edges).reshape(-1, down, order, across, order, channels)
    tiles = tiles.permute(0, 1, 3, 2, 4, 5).reshape(-1, order * order, channels)
    kept = (_basis(scheme, tiles) @ tiles).reshape(images.shape[0], -1, channels)
    return torch.cat([images[:, : scheme.prefix], kept], 1).reshape(-1, channels).to(x.dtype)


def image(low: Tensor, scheme: LowPass) -> Tensor:
    """Bᵀ of it: [images · coefficients, C] → [images · tokens, C]."""
    channels, order = low.shape[1], scheme.order
    down, across = _tiles(scheme)
    images = low.reshape(-1, scheme.coefficients, channels).float()
    kept = images[:, scheme.prefix :].reshape(-1, len(scheme.functions), channels)
    tiles = (_basis(scheme, kept).t() @ kept).reshape(-1, down, across, order, order, channels)
    grid = tiles.permute(0, 1, 3, 2, 4, 5).reshape(-1, down * order, across * order, channels)
    grid = grid[:, : scheme.height, : scheme.width].reshape(images.shape[0], -1, channels)
    return torch.cat([images[:, : scheme.prefix], grid], 1).reshape(-1, channels).to(low.dtype)


@register_rule
class LowPassRule(SchemeRule):
    """Both gradients of a linear layer that sees whole images."""

    scheme = LowPass
    roles = frozenset({Role.GRAD_INPUT, Role.GRAD_WEIGHT})

    def illegal(self, scheme: LowPass, gemm: Gemm) -> str:
        if not scheme.height * scheme.width:
            return 'the grid of the tokens is not known: give its size, {"height": 14, "width": 14, "prefix": 1}'
        tokens = gemm.K if gemm.role is Role.GRAD_WEIGHT else (gemm.M if gemm.gradient == "left" else gemm.N)
        if tokens.symbol or tokens.hint % scheme.tokens:
            return f"{tokens.symbol or tokens.hint} tokens are no images of {scheme.tokens}"
        return super().illegal(scheme, gemm) or why_not_quantised(gemm)

    def price(self, scheme: LowPass, gemm: Gemm, profile: DeviceProfile, sharing: int) -> Cost:
        share, size = scheme.coefficients / scheme.tokens, itemsize(gemm)
        m, n, k = gemm.M.hint, gemm.N.hint, gemm.K.hint
        product = Traffic("mm", 0, m * n * size, math.ceil(2 * m * n * k * share), gemm.dtype)
        if gemm.role is Role.GRAD_WEIGHT:
            extents, tokens = (gemm.gradient_extent, gemm.saved_extent), k
        else:
            extents, tokens = (k, m if gemm.gradient == "right" else n), m if gemm.gradient == "left" else n
        transforms = [_transform_traffic(scheme, tokens, channels, share, size) for channels in extents]
        keeps = gemm.role is Role.GRAD_WEIGHT and not gemm.held
        saved = math.ceil(k * share) * gemm.saved_extent * size // sharing if keeps else 0
        return Cost(seconds([*transforms, product], profile), saved)

    def rewrite(self, scheme: LowPass, node: fx.Node, editor: GraphEditor) -> fx.Node:
        left, right = operands(node)
        gradient_is_left = left in editor.joint.tangent_closure
        gradient, other = (left, right) if gradient_is_left else (right, left)
        if other in editor.joint.parameters_of:  # g_y w, or wᵀ g_yᵀ
            low = self._low(scheme, gradient, not gradient_is_left, node, editor)
            weight = other if gradient_is_left else editor.transposed(other, backward=True)
            product = editor.inline(_multiplied(scheme), (low, weight), node, backward=True)
            return product if gradient_is_left else editor.transposed(product, backward=True)
        # g_yᵀ x, or xᵀ g_y: the tokens are the rows of the right operand only
        first, second = self._low(scheme, left, True, node, editor), self._low(scheme, right, False, node, editor)
        turned = editor.transposed(first, backward=True)
        return editor.call(torch.ops.aten.mm.default, (turned, second), node, backward=True)

    def _low(self, scheme: LowPass, operand: fx.Node, turned: bool, node: fx.Node, editor: GraphEditor) -> fx.Node:
        """B g_y or B x, made once for all products that read it; ``turned``: the operand has the tokens for columns."""
        base, swapped = strip_transpose(operand)
        base = editor.joint.representative(base)
        backward = base in editor.joint.tangent_closure or editor.compresses_in_backward(base)

        def build() -> fx.Node:
            with editor.graph.inserting_before(node) if backward else editor.behind(base):
                source = editor.transposed(base, backward=backward) if swapped is not turned else base
                made = editor.inline(functools.partial(coefficients, scheme=scheme), (source,), base, backward=backward)
            if not backward:
                made.meta[SAVE] = not inherit_recomputation(made, base)
            return made

        low: fx.Node = editor.once(("low pass", base, swapped is not turned, scheme), build)
        return low


def _multiplied(scheme: LowPass) -> Callable[[Tensor, Tensor], Tensor]:
    def multiplied(low: Tensor, weight: Tensor) -> Tensor:
        """Bᵀ((B g_y) w)."""
        return image(low @ weight, scheme)

    return multiplied


def _transform_traffic(scheme: LowPass, tokens: int, channels: int, share: float, size: int) -> Traffic:
    """A transform or its inverse: all tokens on one side, the coefficients on the other."""
    elements = tokens * channels
    operations = 2 * elements * len(scheme.functions)
    return Traffic("low_pass", elements * size, math.ceil(elements * share) * size, operations, "vector")
