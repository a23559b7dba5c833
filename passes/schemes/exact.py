"""The product as the user wrote it: legal for every product, priced by its own bytes and operations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch.fx as fx

from hadamard_fx.cost_model.device_profile import DeviceProfile
from hadamard_fx.cost_model.roofline import UNIT_OF_DTYPE, exact_product
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
        extents = (sizes.m, sizes.n, sizes.k, sizes.batch)
        product = Work(launch(exact_product, *extents, itemsize=itemsize, unit=unit, factor=factor))
        if gemm.role is not Role.GRAD_WEIGHT or gemm.held:
            return (product,)
        return product, Work(None, ("saved", gemm.saved, "exact"), sizes.k * sizes.saved * itemsize)

    def price(self, scheme: Any, gemm: Gemm, profile: DeviceProfile, sharing: int) -> Cost:
        return replace(super().price(scheme, gemm, profile, sharing), error=0.0)

    def rewrite(self, scheme: Any, node: fx.Node, editor: GraphEditor) -> fx.Node:
        return node
