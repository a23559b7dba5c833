"""How the errors of single products add up along a graph: an estimate, and a bound, for every result.

A product's result has the errors of both its operands and its own; where a calibration knows that the operands meet
more coherently than independent ones, their errors, which do not, weigh less. Everything else, pointwise operations,
norms, reshapes, hands on the largest relative error that enters it. Independent errors add like energies: the estimate.
Errors that all point the same way add up, and multiply where they meet: the bound.

Both are relative and of first order: they hold where the graph does not cancel its own signal (a difference of two
nearly equal tensors has a larger relative error than either) and where an operation stretches error and signal alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.fx as fx

from hadamard_fx.cost_model.calibration import Calibration
from hadamard_fx.plan import Decision, Plan

from .find_gemms import LEFT_OPERAND, operands
from .joint_graph import JointGraph

__all__ = ["ResultError", "result_errors", "summary"]


@dataclass(frozen=True)
class ResultError:
    """Relative error of one result of a graph.

    Attributes:
        node: its name.
        gradient: it is a gradient, no result of the forward.
        expected: root of the sum of squares of the errors on the way to it.
        bound: all of them pointing the same way.
    """

    node: str
    gradient: bool
    expected: float
    bound: float


def result_errors(joint: JointGraph, plan: Plan, calibration: Calibration | None = None) -> tuple[ResultError, ...]:
    """For every result of a graph that is not rewritten yet, in order.

    A decision counts with its measured error, else with its predicted one. A product whose error nobody can predict is
    not counted.
    """
    own = {decision.gemm.node: _error(decision) for decision in plan.decisions}
    known = {d.gemm.node: calibration.statistics(d.gemm) for d in plan.decisions} if calibration else {}
    found: dict[fx.Node, tuple[float, float]] = {}
    for node in joint.graph.nodes:
        entering = [found[operand] for operand in node.all_input_nodes]
        squares = max((square for square, _ in entering), default=0.0)
        bound = max((bound for _, bound in entering), default=0.0)
        if node.target in LEFT_OPERAND:
            (left, left_bound), (right, right_bound) = (found[operand] for operand in operands(node))
            error = own.get(node.name, 0.0)
            statistics = known.get(node.name)
            squares = (left + right) / (statistics.coherence if statistics else 1.0) + error**2
            bound = max(bound, (1 + left_bound) * (1 + right_bound) * (1 + error) - 1)
        elif error := own.get(node.name, 0.0):  # what takes the gradient of a convolution out of its call
            squares, bound = squares + error**2, (1 + bound) * (1 + error) - 1
        found[node] = squares, bound
    (outputs,) = joint.graph.find_nodes(op="output")[0].args
    results = outputs if isinstance(outputs, (list, tuple)) else (outputs,)
    return tuple(
        ResultError(node.name, node in joint.tangent_closure, found[node][0] ** 0.5, found[node][1])
        for node in results
        if isinstance(node, fx.Node) and isinstance(node.meta.get("val"), torch.Tensor)
    )


def _error(decision: Decision) -> float:
    measured = decision.measured_error
    return (decision.cost.error or 0.0) if measured is None else measured


def summary(errors: tuple[ResultError, ...]) -> dict[str, float]:
    """The largest expected errors and bounds, for the report; empty where nothing has one."""
    told: dict[str, float] = {}
    for name, gradient in (("forward", False), ("gradients", True)):
        own = [error for error in errors if error.gradient is gradient]
        if any(error.bound for error in own):
            told[f"expected error of {name}, at most"] = float(f"{max(error.expected for error in own):.3g}")
            told[f"error bound of {name}"] = float(f"{max(error.bound for error in own):.3g}")
    return told
