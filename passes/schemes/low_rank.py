"""HLA: g_w = (Ĥ g_y)ᵀ (Ĥ x), Ĥ the low sequencies of each block of tokens; Ĥ x is made in the forward (HOT, section
3: ABC).

Only the compressed x lives between forward and backward. Where the backward holds x anyway (attention reads its own
output), x is compressed there instead: keeping both would cost more than it saves.

Whoever reads g_y can add it up: the gradient of a bias comes out of the same kernel.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.fx as fx

from hadamard_fx.cost_model.device_profile import DeviceProfile
from hadamard_fx.cost_model.work import Sizes, Work, launch
from hadamard_fx.kernels import compress_tokens, quantize_both, quantized_mm
from hadamard_fx.kernels.library import load
from hadamard_fx.kernels.traffic import ceil_div
from hadamard_fx.plan import Gemm, Role
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
        return self.variants(scheme, gemm, profile)[0]

    def variants(self, scheme: LowRank, gemm: Gemm, profile: DeviceProfile) -> tuple[LowRank, ...]:
        """In groups, which one read can make, and without, which the product takes faster."""
        if not scheme.signed:  # one name for what is one scheme
            scheme = replace(scheme, signs="none")
        if scheme.group is not None:
            return (scheme,)
        settings = (scheme.order, scheme.rank, scheme.bits, profile.token_group)
        fits = scheme.scale == "channel" and not quantize_both.why_not((), settings, dtype_of(gemm))
        fits = fits and not quantize_both.why_not_there(torch.device(gemm.device))
        groups = (profile.token_group, 0) if profile.token_group and fits else (0,)
        return tuple(replace(scheme, group=group) for group in groups)

    def illegal(self, scheme: LowRank, gemm: Gemm) -> str:
        reason = super().illegal(scheme, gemm) or why_not_quantised(gemm)
        if not reason and gemm.K.hint < self.least_contracted(scheme):
            return f"{gemm.K.hint} tokens do not fill a block of {scheme.order}, so that a rank cut spares nothing"
        return reason

    def least_contracted(self, scheme: LowRank) -> int:
        return scheme.order if scheme.rank < scheme.order else 0

    def works(self, scheme: LowRank, gemm: Gemm, sizes: Sizes) -> tuple[Work, ...]:
        tokens, size, group = sizes.k, itemsize(gemm), scheme.group or 0
        settings: dict[str, Any] = {"order": scheme.order, "rank": scheme.rank, "itemsize": size, "group": group}
        x = launch(compress_tokens.traffic, tokens, sizes.saved, **settings)
        kept = ceil_div(tokens, scheme.order) * scheme.rank
        columns = group // scheme.order * scheme.rank
        product = {"carrier": "int8", "out_itemsize": size, "group_k": columns}
        return (
            Work(x, ("saved", gemm.saved, scheme), 0 if gemm.held else x.traffic.written),
            Work(launch(compress_tokens.traffic, tokens, sizes.gradient, **settings), reads_gradient="tokens"),
            Work(launch(quantized_mm.traffic, sizes.m, sizes.n, kept, **product)),
        )

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

        key = (base, swapped, scheme.order, scheme.rank, scheme.bits, scheme.scale, scheme.group, scheme.signed)
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
        signs = editor.signs(value(tokens_first).device, node) if scheme.signed else None
        kept = (scheme.order, scheme.rank, scheme.bits, scheme.scale, rounding, scheme.group or 0, sums, signs)
        call = editor.call(load()["compress_tokens"].op, (tokens_first, seed, *kept), node, backward=backward)
        parts = editor.results(call, 3 if sums else 2)
        if not backward:
            tags = [inherit_recomputation(made, tokens_first) for made in (call, *parts)]
            call.meta[SAVE] = not any(tags)
        return parts
