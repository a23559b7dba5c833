"""HQ: g_x = Q(g_y B) Q(Bᵀ w)ᵀ with B = I ⊗ H along the contracted axis O (HOT, section 3).

The weight is quantised in the backward, so that no second copy of it lives between forward and backward. Where the
policy asks for it, the forward is computed the same way along I: y = Q(x B) Q(w B)ᵀ, both rounded to nearest.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.fx as fx

from hadamard_fx.cost_model.device_profile import DeviceProfile
from hadamard_fx.cost_model.work import Sizes, Work, launch
from hadamard_fx.kernels import quantize_both, quantize_rows, quantize_weight, quantized_mm
from hadamard_fx.kernels.library import load
from hadamard_fx.plan import Gemm, Role
from hadamard_fx.scheme import Hadamard

from ..editing import GraphEditor, inherit_recomputation
from ..find_gemms import operands
from ..joint_graph import CASTS, strip_transpose, strip_views, value
from ..rule import SchemeRule, dtype_of, itemsize, product_of_codes, register_rule, why_not_quantised

aten = torch.ops.aten

MASTERS = {(torch.float32, torch.bfloat16), (torch.float32, torch.float16)}
"""(dtype of the parameter, dtype that autocast multiplies in): the casts that may be left out."""


@register_rule
class HadamardRule(SchemeRule):
    """Full-rank quantised product for the gradient of a layer's input, and for its forward."""

    scheme = Hadamard
    roles = frozenset({Role.GRAD_INPUT, Role.FORWARD})

    def refine(self, scheme: Hadamard, gemm: Gemm, profile: DeviceProfile) -> Hadamard:
        return self.variants(scheme, gemm, profile)[0]

    def variants(self, scheme: Hadamard, gemm: Gemm, profile: DeviceProfile) -> tuple[Hadamard, ...]:
        """In groups, which one read can make, and without, which the product takes faster."""
        if scheme.carrier == "auto":
            scheme = replace(scheme, carrier=profile.carrier if scheme.bits <= 4 else "int8")
        if scheme.group is not None:
            return (scheme,)
        # A forward in 8 bits keeps one scale per token: int8 products in groups lose more than one read spares.
        group = profile.column_group if gemm.role is Role.GRAD_INPUT and scheme.scale == "token" else 0
        fits = group and not quantize_both.why_not((scheme.order, scheme.bits, group), (), dtype_of(gemm))
        fits = fits and not quantize_both.why_not_there(torch.device(gemm.device))
        return tuple(replace(scheme, group=size) for size in ((group, 0) if fits else (0,)))

    def illegal(self, scheme: Hadamard, gemm: Gemm) -> str:
        reason = super().illegal(scheme, gemm) or why_not_quantised(gemm)
        if not reason and scheme.group and gemm.device == "cuda":
            reason = quantize_both.why_not((scheme.order, scheme.bits, scheme.group), (), dtype_of(gemm))
            reason = reason or quantize_both.why_not_there(torch.device(gemm.device))
        return reason

    def works(self, scheme: Hadamard, gemm: Gemm, sizes: Sizes) -> tuple[Work, ...]:
        order, size, group = scheme.order, itemsize(gemm), scheme.group or 0
        product = {"carrier": scheme.carrier, "out_itemsize": size, "group_k": group}
        works = [Work(launch(quantized_mm.traffic, sizes.m, sizes.n, sizes.k, **product))]
        rows: dict[str, Any] = {"order": order, "itemsize": size, "scale": scheme.scale, "group": group}
        if gemm.role is Role.FORWARD:  # both operands are made once for all products that read them
            for extent, operand in ((sizes.m, gemm.left), (sizes.n, gemm.right)):
                works.append(Work(launch(quantize_rows.traffic, extent, sizes.k, **rows), ("rows", operand, scheme)))
            return tuple(works)
        weight = launch(quantize_weight.traffic, sizes.k, sizes.saved, order=order, itemsize=size)
        alike = replace(scheme, group=0, rounding="nearest")  # the weight knows neither groups nor random numbers
        works.append(Work(weight, ("weight", gemm.saved, alike)))
        read = launch(quantize_rows.traffic, sizes.gradient, sizes.k, **rows)
        return (*works, Work(read, reads_gradient="rows"))

    def rewrite(self, scheme: Hadamard, node: fx.Node, editor: GraphEditor) -> fx.Node:
        if node not in editor.joint.tangent_closure:
            return _forward(scheme, node, editor)
        left, right = operands(node)
        codes = []
        for operand, is_left in ((left, True), (right, False)):
            if operand in editor.joint.tangent_closure:
                codes.append(self._gradient(scheme, operand, is_left, node, editor))
            else:
                codes.append(self._weight(scheme, operand, is_left, node, editor))
        return product_of_codes(editor, node, codes[0], codes[1], group=scheme.group or 0)

    def _gradient(
        self, scheme: Hadamard, operand: fx.Node, is_left: bool, node: fx.Node, editor: GraphEditor
    ) -> tuple[fx.Node, ...]:
        rows = operand if is_left else editor.transposed(operand, backward=True)
        seed = editor.seed(value(rows).device, node) if scheme.rounding == "stochastic" else None
        settings = (scheme.order, scheme.bits, scheme.scale, scheme.rounding, scheme.carrier, scheme.group or 0)
        return editor.results(editor.call(load()["quantize_rows"].op, (rows, seed, *settings), node, backward=True), 2)

    def _weight(
        self, scheme: Hadamard, operand: fx.Node, is_left: bool, node: fx.Node, editor: GraphEditor
    ) -> tuple[fx.Node, ...]:
        contracted_first = editor.transposed(operand, backward=True) if is_left else operand
        arguments = (
            _uncast(contracted_first, editor, backward=True),
            scheme.order,
            scheme.bits,
            scheme.scale,
            scheme.carrier,
        )
        return editor.results(editor.call(load()["quantize_weight"].op, arguments, node, backward=True), 2)


def _forward(scheme: Hadamard, node: fx.Node, editor: GraphEditor) -> fx.Node:
    """y = Q(x B) Q(w B)ᵀ + b in place of ``node``, an mm or an addmm."""
    left, right = (
        _forward_codes(scheme, operand, index == 0, node, editor) for index, operand in enumerate(operands(node))
    )
    bias = node.args[0] if node.target is aten.addmm.default else None
    columns = value(node).shape[-1:]
    in_kernel = bias if isinstance(bias, fx.Node) and value(bias).shape == columns else None
    group = scheme.group or 0 if value(left[1]).shape[0] != 1 or value(right[1]).shape[0] != 1 else 0
    product = product_of_codes(editor, node, left, right, group=group, bias=in_kernel, backward=False)
    inherit_recomputation(product, node)
    if bias is in_kernel:
        return product
    added = editor.call(aten.add.Tensor, (product, bias), node, backward=False)
    inherit_recomputation(added, node)
    return added


def _forward_codes(
    scheme: Hadamard, operand: fx.Node, is_left: bool, node: fx.Node, editor: GraphEditor
) -> tuple[fx.Node, ...]:
    """Integers and scales of an operand as rows along the contracted axis, made once for all products that read it."""
    group = scheme.group or 0
    if operand in editor.joint.parameters_of:
        operand, group = _uncast(operand, editor, backward=False), 0  # a weight has one scale per column
    base, swapped = strip_transpose(operand)
    base = editor.joint.representative(base)
    rows_first = swapped is not is_left
    settings = (scheme.order, scheme.bits, scheme.scale)

    def build() -> tuple[fx.Node, ...]:
        name = "quantize_rows" if rows_first else "quantize_weight"
        if rows_first:
            arguments: tuple[Any, ...] = (base, None, *settings, scheme.rounding, scheme.carrier, group)
        else:
            arguments = (base, *settings, scheme.carrier)
        made = editor.call(load()[name].op, arguments, node, backward=False)
        parts = editor.results(made, 2)
        for part in (made, *parts):
            inherit_recomputation(part, node)
        return parts

    results: tuple[fx.Node, ...] = editor.once((base, rows_first, scheme), build)
    return results


def _uncast(weight: fx.Node, editor: GraphEditor, *, backward: bool) -> fx.Node:
    """The master copy below autocast's cast: the cast copy then need not live until the backward."""
    base, swapped = strip_transpose(weight)
    if base.target not in CASTS:
        return weight
    master, swapped_below = strip_transpose(base.all_input_nodes[0])
    if strip_views(master).op != "placeholder" or (value(master).dtype, value(base).dtype) not in MASTERS:
        return weight
    return editor.transposed(master, backward=backward) if swapped != swapped_below else master
