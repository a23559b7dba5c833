"""The product as the user wrote it: legal for every product, priced by its own bytes and operations."""

from __future__ import annotations

from typing import Any

import torch.fx as fx

from hadamard_fx.cost_model.device_profile import DeviceProfile
from hadamard_fx.cost_model.roofline import exact_traffic, seconds
from hadamard_fx.plan import Cost, Gemm, Role
from hadamard_fx.scheme import Exact

from ..editing import GraphEditor
from ..rule import SchemeRule, itemsize, register_rule


@register_rule
class ExactRule(SchemeRule):
    """Leave the product alone."""

    scheme = Exact
    roles = frozenset(Role)

    def price(self, scheme: Any, gemm: Gemm, profile: DeviceProfile, sharing: int) -> Cost:
        keeps = gemm.role is Role.GRAD_WEIGHT and not gemm.held
        saved = gemm.K.hint * gemm.saved_extent * itemsize(gemm) // sharing if keeps else 0
        return Cost(seconds([exact_traffic(gemm)], profile), saved, 0.0)

    def rewrite(self, scheme: Any, node: fx.Node, editor: GraphEditor) -> fx.Node:
        return node
