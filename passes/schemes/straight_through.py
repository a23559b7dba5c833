"""QORNN: a recurrence's weights on a grid of k bits, the gradient straight through; ``hadamard_fx.straight_through``.

q_k is inserted behind the weight, once, and stands in for it in the forward and in g_x of every product; g_w is left as
it is, which makes the gradient that of w. A weight that is itself computed, by Björck's iteration for instance, is
rounded behind the computation, and autograd goes on through that.
"""

from __future__ import annotations

import functools

import torch.fx as fx
from torch import Tensor

from hadamard_fx.cost_model.roofline import UNIT_OF_DTYPE, exact_product
from hadamard_fx.cost_model.work import Sizes, Work, launch
from hadamard_fx.kernels.traffic import Expression, Traffic
from hadamard_fx.orthogonal.quantizers import minmax_range, mse_range, quantize
from hadamard_fx.plan import Gemm, Role
from hadamard_fx.straight_through import StraightThrough

from ..editing import PRODUCT, GraphEditor
from ..find_gemms import operands
from ..joint_graph import strip_transpose
from ..rule import SchemeRule, itemsize, register_rule

__all__ = ["on_grid"]

_PRODUCTS = ("mm", "addmm", "addmm with factors", "recurrence", "recurrence_backward")
_NOT_RECURRENT = (
    "neither recurrent nor an input of a recurrence: no product of its weight depends on an earlier one, and no such "
    "product reads its result"
)
_WHY = {
    "recurrent": "recurrent: it depends on an earlier product of its weight",
    "input": "input of a recurrence: a recurrent product reads its result",
}


def on_grid(weight: Tensor, scheme: StraightThrough) -> Tensor:
    """q_k(w) of the same shape and dtype, computed in float32."""
    wide = weight.float()
    mse = scheme.range == "mse"
    alpha = mse_range(wide, scheme.bits, scheme.per_channel) if mse else minmax_range(wide, scheme.per_channel)
    return quantize(wide, alpha, scheme.bits).to(weight.dtype)


@register_rule
class StraightThroughRule(SchemeRule):
    """Products of a recurrence, or any linear layer's."""

    scheme = StraightThrough
    roles = frozenset({Role.FORWARD, Role.GRAD_INPUT})

    def illegal(self, scheme: StraightThrough, gemm: Gemm) -> str:
        if gemm.layer_role not in self.roles:
            return super().illegal(scheme, gemm)
        if gemm.op not in _PRODUCTS:
            return f"{gemm.op} of a weight is left alone"
        if not gemm.recurrence and scheme.applies_to == "recurrence":
            return _NOT_RECURRENT
        return ""

    def note(self, scheme: StraightThrough, gemm: Gemm) -> str:
        if gemm.op.startswith("recurrence"):
            return f"recurrent: its {gemm.batch} steps are one call"
        return _WHY.get(gemm.recurrence, "")

    def works(self, scheme: StraightThrough, gemm: Gemm, sizes: Sizes) -> tuple[Work, ...]:
        size, unit, factor = UNIT_OF_DTYPE.get(gemm.dtype, (4, "float32", 1))
        extents = (sizes.m, sizes.n, sizes.k, sizes.batch)
        outputs = sizes.saved if gemm.gradient else sizes.n
        return (
            Work(launch(exact_product, *extents, itemsize=size, unit=unit, factor=factor)),
            Work(launch(traffic, outputs, sizes.k, itemsize=itemsize(gemm)), shared=("q_k", gemm.weight, scheme)),
        )

    def rewrite(self, scheme: StraightThrough, node: fx.Node, editor: GraphEditor) -> fx.Node:
        weight = _weight(node, editor)
        base, swapped = strip_transpose(weight)
        base = editor.joint.representative(base)

        def build() -> fx.Node:
            with editor.behind(base):
                return editor.inline(functools.partial(on_grid, scheme=scheme), (base,), node, backward=False)

        rounded: fx.Node = editor.once(("q_k", base, scheme), build)
        operand = editor.transposed(rounded, backward=False) if swapped else rounded
        made = editor.graph.node_copy(node)
        made.replace_input_with(weight, operand)
        made.meta[PRODUCT] = editor.product
        return made


def _weight(node: fx.Node, editor: GraphEditor) -> fx.Node:
    left, right = operands(node)
    if node in editor.joint.tangent_closure:
        return left if right in editor.joint.tangent_closure else right
    return right if right in editor.joint.parameters_of else left


def traffic(rows: Expression, columns: Expression, itemsize: int) -> Traffic:
    """Of q_k: the weight is read for its range, read again and written; about eight operations an element."""
    elements = rows * columns
    return Traffic("q_k", 2 * elements * itemsize, elements * itemsize, 8 * elements, "vector")
