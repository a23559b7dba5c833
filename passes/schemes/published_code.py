"""The products of HOT's published code (``hadamard_fx.published_code``): for comparison, so its kernels are not tuned.

x is compressed in the forward, and is all that is saved, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch.fx as fx

from hadamard_fx.cost_model.device_profile import DeviceProfile
from hadamard_fx.cost_model.work import Sizes, Work, launch
from hadamard_fx.kernels import quantize_kept, quantize_rows, quantized_mm
from hadamard_fx.kernels.library import load
from hadamard_fx.kernels.quantize_clipped import largest_order
from hadamard_fx.kernels.quantize_kept import kept_rows
from hadamard_fx.kernels.traffic import ceil_div
from hadamard_fx.plan import Gemm, Role
from hadamard_fx.published_code import ClippedGradInput, ClippedGradWeight
from hadamard_fx.scheme import Scheme

from ..editing import SAVE, GraphEditor, inherit_recomputation
from ..find_gemms import operands
from ..joint_graph import strip_transpose, value
from ..rule import SchemeRule, itemsize, product_of_codes, register_rule, why_not_quantised

Codes = tuple[fx.Node, ...]
"""Integers and their scale."""


@register_rule
class ClippedGradInputRule(SchemeRule):
    """g_x = Q(g_y B) Q(Bᵀ w); the weight is quantised in the backward."""

    scheme = ClippedGradInput
    roles = frozenset({Role.GRAD_INPUT})

    def illegal(self, scheme: ClippedGradInput, gemm: Gemm) -> str:
        return super().illegal(scheme, gemm) or why_not_quantised(gemm)

    def relatives(self, scheme: ClippedGradInput) -> tuple[Scheme, ...]:
        return tuple(replace(scheme, scale=scale) for scale in ("tensor", "token") if scale != scheme.scale)

    def calibrated(
        self, scheme: ClippedGradInput, gemm: Gemm, error: Callable[[Scheme], float | None]
    ) -> tuple[Scheme, str]:
        """The published selection: a scale per token where that halves the error."""
        token, tensor = replace(scheme, scale="token"), replace(scheme, scale="tensor")
        errors = error(token), error(tensor)
        if None in errors:
            return scheme, ""
        if errors[0] < errors[1] / 2:  # type: ignore[operator]
            return token, "a scale per token halves the error"
        return tensor, "a scale per token would not halve the error"

    def works(self, scheme: ClippedGradInput, gemm: Gemm, sizes: Sizes) -> tuple[Work, ...]:
        order, size = scheme.order, itemsize(gemm)
        weight = launch(quantize_kept.traffic, sizes.saved, sizes.k, order=order, kept=order, itemsize=size)
        return (
            Work(
                launch(quantize_rows.traffic, sizes.gradient, sizes.k, order=order, itemsize=size, scale=scheme.scale)
            ),
            Work(weight, ("clipped weight", gemm.saved, order, scheme.weight_bits, scheme.range)),
            Work(launch(quantized_mm.traffic, sizes.m, sizes.n, sizes.k, carrier="int8", out_itemsize=size, group_k=0)),
        )

    def rewrite(self, scheme: ClippedGradInput, node: fx.Node, editor: GraphEditor) -> fx.Node:
        codes = []
        for operand, is_left in zip(operands(node), (True, False), strict=True):
            rows = operand if is_left else editor.transposed(operand, backward=True)
            if operand in editor.joint.tangent_closure:
                seed = editor.seed(value(rows).device, node) if scheme.rounding == "stochastic" else None
                gradient = (rows, seed, scheme.order, scheme.bits, scheme.scale, scheme.rounding, "int8", 0)
                made = editor.call(load()["quantize_rows"].op, gradient, node, backward=True)
            else:
                weight = (rows, None, scheme.order, "all", scheme.weight_bits, scheme.range, "nearest")
                made = editor.call(load()["quantize_kept"].op, weight, node, backward=True)
            codes.append(editor.results(made, 2))
        return product_of_codes(editor, node, codes[0], codes[1], group=0)


@register_rule
class ClippedGradWeightRule(SchemeRule):
    """g_w = Q(Ĥ g_y)ᵀ Q(Ĥ x), blocks within one sequence."""

    scheme = ClippedGradWeight
    roles = frozenset({Role.GRAD_WEIGHT})

    def refine(self, scheme: ClippedGradWeight, gemm: Gemm, profile: DeviceProfile) -> ClippedGradWeight:
        """The order where one sequence's tokens are known."""
        tokens = gemm.sequence or (0 if gemm.K.symbol else gemm.K.hint)
        return replace(scheme, order=largest_order(tokens)) if scheme.order is None and tokens else scheme

    def illegal(self, scheme: ClippedGradWeight, gemm: Gemm) -> str:
        if scheme.order is None and gemm.role is Role.GRAD_WEIGHT:
            return "the tokens of one sequence vary: give the order of the transform"
        if (scheme.order or 1) > max(gemm.K.hint, 1):
            return f"{gemm.K.hint} tokens do not fill a block of {scheme.order}"
        return super().illegal(scheme, gemm) or why_not_quantised(gemm)

    def note(self, scheme: ClippedGradWeight, gemm: Gemm) -> str:
        if scheme.order != 1:
            return ""
        return f"no power of two divides the {gemm.sequence or gemm.K.hint} tokens of a sequence: no transform"

    def relatives(self, scheme: ClippedGradWeight) -> tuple[Scheme, ...]:
        return (replace(scheme, bits=4),) if scheme.bits != 4 else ()

    def calibrated(
        self, scheme: ClippedGradWeight, gemm: Gemm, error: Callable[[Scheme], float | None]
    ) -> tuple[Scheme, str]:
        """The published code takes 4 bits wherever selection is on, whatever the error."""
        return replace(scheme, bits=4), "4 bits, as the published code has it with selection on"

    def works(self, scheme: ClippedGradWeight, gemm: Gemm, sizes: Sizes) -> tuple[Work, ...]:
        order, size = scheme.order or 1, itemsize(gemm)
        kept = kept_rows(order, scheme.rows)
        settings = {"order": order, "kept": kept, "itemsize": size}
        x = launch(quantize_kept.traffic, sizes.saved, sizes.k, **settings)
        columns = ceil_div(sizes.k, order) * kept
        product = {"carrier": "int8", "out_itemsize": size, "group_k": 0}
        return (
            Work(
                x,
                ("saved", gemm.saved, order, scheme.rows, scheme.input_bits, scheme.range),
                0 if gemm.held else x.traffic.written,
            ),
            Work(launch(quantize_kept.traffic, sizes.gradient, sizes.k, **settings)),
            Work(launch(quantized_mm.traffic, sizes.m, sizes.n, columns, **product)),
        )

    def rewrite(self, scheme: ClippedGradWeight, node: fx.Node, editor: GraphEditor) -> fx.Node:
        codes = []
        for operand, is_left in zip(operands(node), (True, False), strict=True):
            if operand in editor.joint.tangent_closure:
                channels_first = operand if is_left else editor.transposed(operand, backward=True)
                seed = editor.seed(value(operand).device, node) if scheme.rounding == "stochastic" else None
                settings = (scheme.order, scheme.rows, scheme.bits, "minmax", scheme.rounding)
                made = editor.call(load()["quantize_kept"].op, (channels_first, seed, *settings), node, backward=True)
                codes.append(editor.results(made, 2))
            else:
                codes.append(_saved(scheme, operand, is_left, node, editor))
        return product_of_codes(editor, node, codes[0], codes[1], group=0)


def _saved(
    scheme: ClippedGradWeight, operand: fx.Node, channels_first: bool, node: fx.Node, editor: GraphEditor
) -> Codes:
    """Q(Ĥ x), channels first, made once for all products that read it: in the forward, unless x lives anyhow."""
    base, swapped = strip_transpose(operand)
    base = editor.joint.representative(base)
    as_asked = swapped is not channels_first
    backward = editor.compresses_in_backward(base)
    settings = (scheme.order, scheme.rows, scheme.input_bits, scheme.range, "nearest")

    def build() -> Codes:
        with editor.graph.inserting_before(node) if backward else editor.behind(base):
            source = base if as_asked else editor.transposed(base, backward=backward)
            made = editor.call(load()["quantize_kept"].op, (source, None, *settings), node, backward=backward)
            parts = editor.results(made, 2)
        if not backward:
            tags = [inherit_recomputation(part, base) for part in (made, *parts)]
            made.meta[SAVE] = not any(tags)
        return parts

    codes: Codes = editor.once((base, as_asked, settings), build)
    return codes
