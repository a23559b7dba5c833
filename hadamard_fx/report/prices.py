"""How the products of a plan are priced: one formula for each scheme and kind of product, in M, N and K."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

from ..errors import SchemeError
from ..passes.formula import formula
from ..plan import Plan, Size

__all__ = ["Price", "prices"]

Price: TypeAlias = tuple[str, str, str]
"""(scheme, kind of product, its predicted seconds as algebra)."""


def prices(plan: Plan) -> tuple[Price, ...]:
    """One entry for each scheme that computes products, by role, dtype and device, in graph order."""
    found: dict[object, Price] = {}
    for decision in plan.decisions:
        gemm = decision.gemm
        alike = (decision.scheme, gemm.role, gemm.gradient, gemm.dtype, gemm.device, gemm.batch == Size(1))
        if alike not in found:
            one = replace(gemm, batch=gemm.batch if gemm.batch == Size(1) else Size(2))
            try:
                algebra = str(formula(decision.scheme, one).expression)
            except SchemeError as error:
                algebra = str(error)
            found[alike] = (str(decision.scheme), f"{gemm.role} in {gemm.dtype}", algebra)
    return tuple(dict.fromkeys(found.values()))
