"""HQ: g_x = Q(g_y B) Q(Bᵀ w)ᵀ with B = I ⊗ H along the contracted axis O (HOT, section 3).

The weight is quantised in the backward, so that no second copy of it lives between forward and backward.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.fx as fx

from hadamard_fx.cost_model.device_profile import DeviceProfile
from hadamard_fx.cost_model.roofline import seconds
from hadamard_fx.kernels import quantize_rows, quantize_weight, quantized_mm
from hadamard_fx.kernels.library import load
from hadamard_fx.plan import Cost, Gemm, Role
from hadamard_fx.scheme import Hadamard

from ..editing import GraphEditor
from ..find_gemms import operands
from ..joint_graph import CASTS, strip_transpose, value
from ..rule import SchemeRule, itemsize, product_of_codes, register_rule, why_not_quantised

MASTERS = {(torch.float32, torch.bfloat16), (torch.float32, torch.float16)}
"""(dtype of the parameter, dtype that autocast multiplies in): the casts that may be left out."""


@register_rule
class HadamardRule(SchemeRule):
    """Full-rank quantised product for the gradient of a layer's input."""

    scheme = Hadamard
    roles = frozenset({Role.GRAD_INPUT})

    def refine(self, scheme: Hadamard, gemm: Gemm, profile: DeviceProfile) -> Hadamard:
        if scheme.carrier != "auto":
            return scheme
        return replace(scheme, carrier=profile.carrier if scheme.bits <= 4 else "int8")

    def illegal(self, scheme: Hadamard, gemm: Gemm) -> str:
        return super().illegal(scheme, gemm) or why_not_quantised(gemm)

    def price(self, scheme: Hadamard, gemm: Gemm, profile: DeviceProfile, sharing: int) -> Cost:
        tokens, channels, size = gemm.gradient_extent, gemm.saved_extent, itemsize(gemm)
        launches = [
            quantize_rows.traffic(tokens, gemm.K.hint, scheme.order, size),
            quantize_weight.traffic(gemm.K.hint, channels, scheme.order, size),
            quantized_mm.traffic(gemm.M.hint, gemm.N.hint, gemm.K.hint, scheme.carrier, size),
        ]
        return Cost(seconds(launches, profile))

    def rewrite(self, scheme: Hadamard, node: fx.Node, editor: GraphEditor) -> fx.Node:
        left, right = operands(node)
        codes = []
        for operand, is_left in ((left, True), (right, False)):
            if operand in editor.joint.tangent_closure:
                codes.append(self._gradient(scheme, operand, is_left, node, editor))
            else:
                codes.append(self._weight(scheme, operand, is_left, node, editor))
        return product_of_codes(editor, node, codes[0], codes[1], group=0)

    def _gradient(
        self, scheme: Hadamard, operand: fx.Node, is_left: bool, node: fx.Node, editor: GraphEditor
    ) -> tuple[fx.Node, ...]:
        rows = operand if is_left else editor.transposed(operand, backward=True)
        seed = editor.seed(value(rows).device, node) if scheme.rounding == "stochastic" else None
        arguments = (rows, seed, scheme.order, scheme.bits, scheme.scale, scheme.rounding, scheme.carrier)
        return editor.results(editor.call(load()["quantize_rows"].op, arguments, node, backward=True), 2)

    def _weight(
        self, scheme: Hadamard, operand: fx.Node, is_left: bool, node: fx.Node, editor: GraphEditor
    ) -> tuple[fx.Node, ...]:
        contracted_first = editor.transposed(operand, backward=True) if is_left else operand
        arguments = (_uncast(contracted_first, editor), scheme.order, scheme.bits, scheme.scale, scheme.carrier)
        return editor.results(editor.call(load()["quantize_weight"].op, arguments, node, backward=True), 2)


def _uncast(weight: fx.Node, editor: GraphEditor) -> fx.Node:
    """The master copy below autocast's cast: the cast copy then need not live until the backward."""
    base, swapped = strip_transpose(weight)
    if base.target not in CASTS:
        return weight
    master, swapped_below = strip_transpose(base.all_input_nodes[0])
    if master.op != "placeholder" or (value(master).dtype, value(base).dtype) not in MASTERS:
        return weight
    return editor.transposed(master, backward=True) if swapped != swapped_below else master
