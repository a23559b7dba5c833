"""A scheme of one's own in one file: LUQ (Chmiel et al. 2023, "Accurate Neural Training with 4-bit Matrix
Multiplications at Standard Formats"), as fake-quantised operands of an exact product.

Notation: x [L, I] tokens, w [O, I], y = x wᵀ, g_y = d loss / d y. LUQ multiplies SAWB(x), SAWB(w) and LUQ(g_y), where
the same LUQ(g_y) feeds g_x = LUQ(g_y) SAWB(w) and g_w = LUQ(g_y)ᵀ SAWB(x). ``docs/writing-a-pass.md`` explains it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.fx as fx

from hadamard_fx.cost_model.device_profile import DeviceProfile
from hadamard_fx.cost_model.roofline import exact_traffic, seconds
from hadamard_fx.kernels.traffic import Traffic
from hadamard_fx.passes.editing import GraphEditor, inherit_recomputation
from hadamard_fx.passes.find_gemms import operands
from hadamard_fx.passes.joint_graph import strip_transpose
from hadamard_fx.passes.rule import SchemeRule, itemsize, register_rule, why_not_quantised
from hadamard_fx.plan import Cost, Gemm, Role, Scheme

aten = torch.ops.aten

LEVELS = 7
"""Positive levels of a signed 4-bit grid, ±1 … ±7 of the step, and of FP4 1-3-0, 2^0 … 2^6 of the smallest."""


def sawb(x: torch.Tensor) -> torch.Tensor:
    """Nearest point of 15 equidistant ones in [−α, α], α from the first two moments (SAWB, Choi et al. 2019).

    α = 12.68 √E[x²] − 12.80 E|x| is a fit of the best clip of bell-shaped distributions. Below E|x|, which it falls to
    where nearly all |x| are equal, it would clip nearly everything: there α = E|x| (ours, not the paper's).
    """
    wide = x.float()
    mean = wide.abs().mean()
    clip = torch.maximum(12.68 * wide.square().mean().sqrt() - 12.80 * mean, mean)
    step = torch.where(clip == 0, 1.0, clip / LEVELS)
    return (torch.round(torch.clamp(wide / step, -LEVELS, LEVELS)) * step).to(x.dtype)


def luq(g: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Unbiased rounding to ±α 2^k, k = 0 … 6, and 0; α = max|g| / 2^6.

    Below α: to α with probability |g| / α, else to 0 (stochastic underflow). Above, between l = α 2^k and 2 l: to 2 l
    with probability (|g| − l) / l (logarithmic stochastic rounding). Both keep the expected value.

    Args:
        uniform: a number in [0, 1) for each element.
    """
    wide = g.float()
    smallest = wide.abs().max() / 2 ** (LEVELS - 1)
    ratio = wide.abs() / torch.where(smallest == 0, 1.0, smallest)
    below = torch.exp2(torch.floor(torch.log2(torch.clamp(ratio, min=1.0))))
    lower = torch.where(ratio < 1, 0.0, below)
    step = torch.where(ratio < 1, 1.0, below)
    rounded = torch.where(uniform * step < ratio - lower, lower + step, lower)
    # A bad number must not round to a plausible one, and inf − inf is nan.
    rounded = torch.where(torch.isfinite(ratio), rounded, ratio - ratio) * torch.sign(wide)
    return torch.mul(rounded, smallest).to(g.dtype)


@dataclass(frozen=True)
class Luq(Scheme):
    """4-bit operands: SAWB for x and w, LUQ for g_y."""

    kind: ClassVar[str] = "luq"

    def __str__(self) -> str:
        return "LUQ 4 bits, emulated"


@register_rule
class LuqRule(SchemeRule):
    """All three products of a linear layer; no 4-bit unit computes them, so the price is the exact one and more."""

    scheme = Luq
    roles = frozenset({Role.FORWARD, Role.GRAD_INPUT, Role.GRAD_WEIGHT})

    def illegal(self, scheme: Any, gemm: Gemm) -> str:
        return super().illegal(scheme, gemm) or why_not_quantised(gemm)

    def price(self, scheme: Any, gemm: Gemm, profile: DeviceProfile, sharing: int) -> Cost:
        elements, size = (gemm.M.hint + gemm.N.hint) * gemm.K.hint, itemsize(gemm)
        # Each operand is read for its scale, read again, and written; about 20 operations an element round it.
        rounding = Traffic("luq", 2 * elements * size, elements * size, 20 * elements, "vector")
        keeps = gemm.role is Role.GRAD_WEIGHT and not gemm.held
        saved = gemm.K.hint * gemm.saved_extent * size // sharing if keeps else 0
        return Cost(seconds([exact_traffic(gemm), rounding], profile), saved)

    def rewrite(self, scheme: Any, node: fx.Node, editor: GraphEditor) -> fx.Node:
        left, right = (self._rounded(operand, node, editor) for operand in operands(node))
        bias = node.args[:1] if node.target is aten.addmm.default else ()
        backward = node in editor.joint.tangent_closure
        product = editor.call(node.target, (*bias, left, right), node, backward=backward)
        inherit_recomputation(product, node)
        return product

    def _rounded(self, operand: fx.Node, node: fx.Node, editor: GraphEditor) -> fx.Node:
        """An operand, rounded once for all products that read it, whichever way round they read it."""
        base, swapped = strip_transpose(operand)
        base = editor.joint.representative(base)
        gradient = base in editor.joint.tangent_closure

        def build() -> fx.Node:
            if gradient:
                return editor.inline(luq, (base, editor.uniform(base)), node, backward=True)
            return editor.inline(sawb, (base,), node, backward=False)

        rounded: fx.Node = editor.once(("luq", base), build)
        return editor.transposed(rounded, backward=gradient) if swapped else rounded
