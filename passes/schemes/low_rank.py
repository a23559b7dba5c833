"""HLA: g_w = (Ĥ g_y)ᵀ (Ĥ x), Ĥ the low sequencies of each block of tokens; Ĥ x is made in the forward (HOT, section
3: ABC).

Only the compressed x lives between forward and backward. Where the backward holds x anyway (attention reads its own
output), x is compressed there instead: keeping both would cost more than it saves.

Whoever reads g_y can add it up: the gradient of a bias comes out of the same kernel.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.fx as fx

from hadamard_fx.cost_model.device_profile import DeviceProfile
from hadamard_fx.cost_model.roofline import seconds
from hadamard_fx.kernels import compress_tokens, quantize_both, quantized_mm
from hadamard_fx.kernels.library import load
from hadamard_fx.plan import Cost, Gemm, Role
from hadamard_fx.scheme import LowRank

from ..editing import SAVE, GraphEditor, inherit_recomputation
from ..find_gemms import operands
from ..joint_graph import strip_transpose, value
from ..rule import SchemeRule, dtype_of, itemsize, product_of_codes, register_rule, why_not_quantised

aten = torch.ops.aten


@register_rule
class LowRankRule(SchemeRule):
    """Low-rank quantised product for the gradient of a layer's weight."""

    scheme = LowRank
    roles = frozenset({Role.GRAD_WEIGHT})

    def refine(self, scheme: LowRank, gemm: Gemm, profile: DeviceProfile) -> LowRank:
        if scheme.group is not None:
            return scheme
        settings = (scheme.order, scheme.rank, scheme.bits, profile.token_group)
        fits = scheme.scale == "channel" and not quantize_both.why_not((), settings, dtype_of(gemm))
        fits = fits and not quantize_both.why_not_there(torch.device(gemm.device))
        return replace(scheme, group=profile.token_group if profile.token_group and fits else 0)

    def illegal(self, scheme: LowRank, gemm: Gemm) -> str:
        if gemm.K.hint < scheme.order and scheme.rank < scheme.order:
            return f"{gemm.K.hint} tokens do not fill a block of {scheme.order}: a rank cut would shrink their sum"
        return super().illegal(scheme, gemm) or why_not_quantised(gemm)

    def price(self, scheme: LowRank, gemm: Gemm, profile: DeviceProfile, sharing: int) -> Cost:
        tokens, size, group = gemm.K.hint, itemsize(gemm), scheme.group or 0
        kept = -(-tokens // scheme.order) * scheme.rank
        compress_x = compress_tokens.traffic(tokens, gemm.saved_extent, scheme.order, scheme.rank, size, group)
        launches = [
            compress_tokens.traffic(tokens, gemm.gradient_extent, scheme.order, scheme.rank, size, group),
            quantized_mm.traffic(gemm.M.hint, gemm.N.hint, kept, "int8", size, group // scheme.order * scheme.rank),
        ]
        shared = seconds([compress_x], profile) / sharing
        saved = 0 if gemm.held else int(compress_x.written) // sharing
        return Cost(seconds(launches, profile) + shared, saved)

    def rewrite(self, scheme: LowRank, node: fx.Node, editor: GraphEditor) -> fx.Node:
        left, right = operands(node)
        codes = []
        for operand, is_left in ((left, True), (right, False)):
            tokens_first = editor.transposed(operand, backward=True) if is_left else operand
            if operand in editor.joint.tangent_closure:
                codes.append(self._gradient(scheme, tokens_first, node, editor))
            else:
                codes.append(self._activation(scheme, tokens_first, node, editor))
        columns = (scheme.group or 0) // scheme.order * scheme.rank
        return product_of_codes(editor, node, codes[0], codes[1], group=columns)

    def _gradient(
        self, scheme: LowRank, tokens_first: fx.Node, node: fx.Node, editor: GraphEditor
    ) -> tuple[fx.Node, ...]:
        seed = editor.seed(value(tokens_first).device, node) if scheme.rounding == "stochastic" else None
        sums = [total for total in editor.joint.token_sums(tokens_first) if node < total]
        results = self._compress(
            scheme, tokens_first, seed, scheme.rounding, node, editor, backward=True, sums=bool(sums)
        )
        for total in sums:
            editor.finish_sum(total, results[-1], backward=True)
        return results[:2]

    def _activation(
        self, scheme: LowRank, tokens_first: fx.Node, node: fx.Node, editor: GraphEditor
    ) -> tuple[fx.Node, ...]:
        base, swapped = strip_transpose(tokens_first)
        base = editor.joint.representative(base)
        in_backward = editor.compresses_in_backward(base)

        def build() -> tuple[fx.Node, ...]:
            with editor.graph.inserting_before(node) if in_backward else editor.behind(base):
                source = editor.transposed(base, backward=in_backward) if swapped else base
                return self._compress(scheme, source, None, "nearest", node, editor, backward=in_backward)

        key = (base, swapped, scheme.order, scheme.rank, scheme.bits, scheme.scale, scheme.group)
        results: tuple[fx.Node, ...] = editor.once(key, build)
        return results

    def _compress(
        self,
        scheme: LowRank,
        tokens_first: fx.Node,
        seed: fx.Node | None,
        rounding: str,
        node: fx.Node,
        editor: GraphEditor,
        *,
        backward: bool,
        sums: bool = False,
    ) -> tuple[fx.Node, ...]:
        kept = (scheme.order, scheme.rank, scheme.bits, scheme.scale, rounding, scheme.group or 0, sums)
        call = editor.call(load()["compress_tokens"].op, (tokens_first, seed, *kept), node, backward=backward)
        parts = editor.results(call, 3 if sums else 2)
        if not backward:
            tags = [inherit_recomputation(made, tokens_first) for made in (call, *parts)]
            call.meta[SAVE] = not any(tags)
        return parts
