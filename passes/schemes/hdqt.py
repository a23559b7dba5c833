"""HDQT: the three products of a layer on the integers of its forward, in accumulators that saturate.

The forward makes x̂ and ŵ; g_x multiplies with ŵ, g_w with x̂. Only x̂ lives between forward and backward: ŵ is made again
in the backward by the same rounding to nearest, which gives the same integers. So is x̂ where the backward holds x
anyway. Where the forward of a layer is left exact, x and w are made into integers as it would have made them.

Source: HDQT (arXiv 2310.03675).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.fx as fx

from hadamard_fx.cost_model.device_profile import DeviceProfile
from hadamard_fx.cost_model.work import Sizes, Work, launch
from hadamard_fx.kernels import quantize_clipped, saturating_mm
from hadamard_fx.kernels.library import load
from hadamard_fx.kernels.quantize_clipped import largest_order
from hadamard_fx.plan import Gemm, Role
from hadamard_fx.saturating import SaturatingForward, SaturatingGradInput, SaturatingGradWeight
from hadamard_fx.scheme import Scheme

from ..editing import MATRIX, SAVE, GraphEditor, inherit_recomputation
from ..find_gemms import operands
from ..joint_graph import strip_transpose, value
from ..rule import SchemeRule, itemsize, register_rule, why_not_quantised

aten = torch.ops.aten

Codes = tuple[fx.Node, ...]
"""Integers and their scale."""


class SaturatingRule(SchemeRule):
    """What the three have in common."""

    def refine(self, scheme: Any, gemm: Gemm, profile: DeviceProfile) -> Scheme:
        """The order where the extent is known; where it varies, the operator takes the largest at each call."""
        refined: Scheme = scheme
        if getattr(scheme, "order", 1) is None and not gemm.K.symbol:
            refined = replace(scheme, order=largest_order(gemm.K.hint))
        return refined

    def illegal(self, scheme: Any, gemm: Gemm) -> str:
        unsigned = isinstance(scheme, SaturatingForward)
        largest = (2**scheme.bits - 1 if unsigned else 2 ** (scheme.bits - 1)) * 2 ** (scheme.bits - 1)
        if gemm.K.hint * largest >= 2**31:
            return f"a sum of {gemm.K.hint} products of {scheme.bits}-bit integers does not fit an int32"
        return super().illegal(scheme, gemm) or why_not_quantised(gemm)

    def note(self, scheme: Any, gemm: Gemm) -> str:
        if getattr(scheme, "order", None) != 1:
            return ""
        return f"no power of two divides {gemm.K.hint}: its operands are rounded without a transform"

    def works(self, scheme: Any, gemm: Gemm, sizes: Sizes) -> tuple[Work, ...]:
        size, order = itemsize(gemm), getattr(scheme, "order", 1) or largest_order(gemm.K.hint)
        saved = Work(None, ("saved", gemm.saved, "integers"), sizes.k * sizes.saved)
        return (
            *(
                Work(launch(quantize_clipped.traffic, rows, sizes.k, order=order, itemsize=size))
                for rows in (sizes.m, sizes.n)
            ),
            Work(launch(saturating_mm.traffic, sizes.m, sizes.n, sizes.k, out_itemsize=size)),
            *((saved,) if gemm.role is Role.GRAD_WEIGHT and not gemm.held else ()),
        )


@register_rule
class SaturatingForwardRule(SaturatingRule):
    """y = x̂ ŵᵀ, a clamp per tile."""

    scheme = SaturatingForward
    roles = frozenset({Role.FORWARD})

    def rewrite(self, scheme: SaturatingForward, node: fx.Node, editor: GraphEditor) -> fx.Node:
        left, right = operands(node)
        codes = []
        for operand, is_left in ((left, True), (right, False)):
            weight = operand in editor.joint.parameters_of
            found = _integers(scheme, operand, node, editor, unsigned=not weight, backward=False)
            codes.append(tuple(_k_major(part, operand, is_left, editor) for part in found[:1]) + found[1:])
        bias = node.args[0] if node.target is aten.addmm.default else None
        in_kernel = bias if isinstance(bias, fx.Node) and value(bias).shape == value(node).shape[-1:] else None
        made = _product(scheme, codes, node, editor, bias=in_kernel, backward=False)
        if bias is not in_kernel:
            inherit_recomputation(made, node)
            made = editor.call(aten.add.Tensor, (made, bias), node, backward=False)
        inherit_recomputation(made, node)
        return made


@register_rule
class SaturatingGradInputRule(SaturatingRule):
    """g_x = Q(g_y H) Q(H ŵ)."""

    scheme = SaturatingGradInput
    roles = frozenset({Role.GRAD_INPUT})

    def rewrite(self, scheme: SaturatingGradInput, node: fx.Node, editor: GraphEditor) -> fx.Node:
        def integers(operand: fx.Node) -> Codes:
            return _integers(scheme, operand, node, editor, unsigned=False, backward=True)

        return _gradient(scheme, scheme.weight_rounding, integers, node, editor)


@register_rule
class SaturatingGradWeightRule(SaturatingRule):
    """g_w = Q(g_yᵀ H) Q(H x̂)."""

    scheme = SaturatingGradWeight
    roles = frozenset({Role.GRAD_WEIGHT})

    def rewrite(self, scheme: SaturatingGradWeight, node: fx.Node, editor: GraphEditor) -> fx.Node:
        def integers(operand: fx.Node) -> Codes:
            base = editor.joint.representative(strip_transpose(operand)[0])
            if editor.compresses_in_backward(base):
                return _integers(scheme, operand, node, editor, unsigned=True, backward=True)
            with editor.behind(base):
                found = _integers(scheme, operand, node, editor, unsigned=True, backward=False)
            made = found[0].all_input_nodes[0]
            made.meta[SAVE] = "recompute" not in made.meta
            return found

        return _gradient(scheme, scheme.input_rounding, integers, node, editor)


def _integers(
    scheme: Any, operand: fx.Node, node: fx.Node, editor: GraphEditor, *, unsigned: bool, backward: bool
) -> Codes:
    """x̂ or ŵ in the shape of the tensor below the operand's transposes, made once; in the backward a second time.

    Whoever asks first decides on the bits: the forward, where it is quantised.
    """
    base = editor.joint.representative(strip_transpose(operand)[0])
    own = (scheme.bits, scheme.alpha)
    first = editor.once(("range of the integers", base.meta.get(MATRIX, base)), lambda: own)
    bits, alpha = own if isinstance(scheme, SaturatingForward) else first

    def build() -> Codes:
        # In the backward the transposed tensor: the same call as in the forward would be merged with it, and saved.
        source = editor.transposed(base, backward=True) if backward else base
        arguments = (source, None, None, 1, bits, alpha, "nearest", unsigned)
        made = editor.call(load()["quantize_clipped"].op, arguments, node, backward=backward)
        parts = editor.results(made, 2)
        if not backward:
            for part in (made, *parts):
                inherit_recomputation(part, node if isinstance(scheme, SaturatingForward) else base)
            return parts
        return editor.transposed(parts[0], backward=True), parts[1]

    found: Codes = editor.once(("integers", base, backward, bits, alpha, unsigned), build)
    return found


def _k_major(
    integers: fx.Node, operand: fx.Node, is_left: bool, editor: GraphEditor, backward: bool = False
) -> fx.Node:
    """Integers in the shape of the tensor below an operand's transposes, as rows along the contracted axis."""
    swapped = strip_transpose(operand)[1]
    return editor.transposed(integers, backward=backward) if swapped is is_left else integers


def _gradient(scheme: Any, saved_rounding: str, integers: Any, node: fx.Node, editor: GraphEditor) -> fx.Node:
    """The product of the transformed gradient and the transformed integers of the forward."""
    codes = []
    for operand, is_left in zip(operands(node), (True, False), strict=True):
        if operand in editor.joint.tangent_closure:
            rows = operand if is_left else editor.transposed(operand, backward=True)
            codes.append(_transformed(scheme, rows, None, scheme.rounding, node, editor))
        else:
            q, scale = integers(operand)
            rows = _k_major(q, operand, is_left, editor, backward=True)
            codes.append(_transformed(scheme, rows, scale, saved_rounding, node, editor))
    return _product(scheme, codes, node, editor, bias=None, backward=True)


def _transformed(
    scheme: Any, rows: fx.Node, scale: fx.Node | None, rounding: str, node: fx.Node, editor: GraphEditor
) -> Codes:
    seed = editor.seed(value(rows).device, node) if rounding == "stochastic" else None
    arguments = (rows, scale, seed, scheme.order or 0, scheme.bits, scheme.alpha, rounding, False)
    return editor.results(editor.call(load()["quantize_clipped"].op, arguments, node, backward=True), 2)


def _product(
    scheme: Any, codes: list[Codes], node: fx.Node, editor: GraphEditor, *, bias: fx.Node | None, backward: bool
) -> fx.Node:
    (left, scale_left), (right, scale_right) = codes
    settings = (scheme.tile, scheme.accumulator_bits, value(node).dtype, bias, editor.counter(node))
    return editor.call(
        load()["saturating_mm"].op, (left, right, scale_left, scale_right, *settings), node, backward=backward
    )
