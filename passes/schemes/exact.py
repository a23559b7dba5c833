"""The product as the user wrote it: legal for every product, priced by its own bytes and operations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch.fx as fx

from hadamard_fx.cost_model.device_profile import DeviceProfile
from hadamard_fx.cost_model.roofline import UNIT_OF_DTYPE, exact_convolution, exact_product
from hadamard_fx.cost_model.work import Sizes, Work, launch
from hadamard_fx.plan import Cost, Gemm, Role
from hadamard_fx.scheme import Exact

from ..editing import GraphEditor
from ..rule import SchemeRule, register_rule


@register_rule
class ExactRule(SchemeRule):
    """Leave the product alone."""

    scheme = Exact
    roles = frozenset(Role)

    def works(self, scheme: Any, gemm: Gemm, sizes: Sizes) -> tuple[Work, ...]:
        itemsize, unit, factor = UNIT_OF_DTYPE.get(gemm.dtype, (4, "float32", 1))
        rates = {"itemsize": itemsize, "unit": unit, "factor": factor}
        if gemm.window is None:
            product = launch(exact_product, sizes.m, sizes.n, sizes.k, sizes.batch, **rates)
        else:
            product = launch(exact_convolution, sizes.m, sizes.n, sizes.k, sizes.image, unfolded=gemm.unfolded, **rates)
        if gemm.role is not Role.GRAD_WEIGHT or gemm.held:
            return (Work(product),)
        x = sizes.k * sizes.saved if gemm.window is None else sizes.image
        return Work(product), Work(None, ("saved", gemm.saved, "exact"), x * itemsize)

    def price(self, scheme: Any, gemm: Gemm, profile: DeviceProfile, sharing: int) -> Cost:
        return replace(super().price(scheme, gemm, profile, sharing), error=0.0)

    def rewrite(self, scheme: Any, node: fx.Node, editor: GraphEditor) -> fx.Node:
        return node
