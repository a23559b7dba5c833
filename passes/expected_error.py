"""The errors that a decision is expected to have: predicted for every scheme, and measured where a calibration did."""

from __future__ import annotations

from dataclasses import replace

from hadamard_fx.cost_model.calibration import Calibration
from hadamard_fx.cost_model.error import has_error_model, relative_error
from hadamard_fx.cost_model.statistics import Statistics
from hadamard_fx.plan import Cost, Decision, Gemm, Role, Scheme

__all__ = ["with_errors"]

_OF_LAYERS = (Role.FORWARD, Role.GRAD_INPUT, Role.GRAD_WEIGHT)


def with_errors(decision: Decision, calibration: Calibration | None) -> Decision:
    """The decision with the errors of its scheme and of the rejected ones, where they can be predicted.

    A prediction that stands there already is kept. Without a calibration independent Gaussian operands are assumed.
    """
    gemm = decision.gemm
    if gemm.role not in _OF_LAYERS:
        return decision
    statistics = calibration.statistics(gemm) if calibration else None
    rejected = tuple(
        other if other.cost is None else replace(other, cost=_with_error(other.cost, other.scheme, gemm, statistics))
        for other in decision.rejected
    )
    measured = calibration.measured_error(decision.scheme, gemm) if calibration else None
    cost = _with_error(decision.cost, decision.scheme, gemm, statistics)
    return replace(decision, cost=cost, rejected=rejected, measured_error=measured)


def _with_error(cost: Cost, scheme: Scheme, gemm: Gemm, statistics: Statistics | None) -> Cost:
    if cost.error is not None or not has_error_model(scheme):
        return cost
    return replace(cost, error=relative_error(scheme, gemm, statistics))
