"""Time each product of a traced step with torch's profiler: ``explain(..., measure=True)``.

The graphs are interpreted, so that every product runs in the kernels that it has when compiled (mm of aten, operators
of ``hadamard::``), and the operators of a call are put down to the product whose decision built it. Work that several
products share counts for the one that built it. What compiled code does beside the products is not measured.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.fx as fx
from torch.profiler import ProfilerActivity, profile, record_function

from hadamard_fx import compat

from ..passes.editing import PRODUCT
from ..passes.find_gemms import LEFT_OPERAND
from ..plan import Plan

__all__ = ["RUNS", "Measured", "interpret_labelled", "measure", "measured_of"]

RUNS = 5
"""Steps that are measured, after one that warms up."""

_LABEL = "hadamard_fx.product"


@dataclass(frozen=True)
class Measured:
    """Times of one graph, medians over ``runs`` steps.

    Attributes:
        seconds: (node, seconds) of every product that was found in the run.
        unmatched: (node, seconds) of products and quantising kernels that belong to no product of the plan, or to
            several: one read that makes two forms, for instance.
        runs: steps that were measured.
    """

    seconds: tuple[tuple[str, float], ...]
    unmatched: tuple[tuple[str, float], ...] = ()
    runs: int = RUNS

    def to_json(self) -> dict[str, Any]:
        return {
            "seconds": [{"node": node, "seconds": seconds} for node, seconds in self.seconds],
            "unmatched": [{"node": node, "seconds": seconds} for node, seconds in self.unmatched],
            "runs": self.runs,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        seconds, unmatched = (
            tuple((entry["node"], entry["seconds"]) for entry in data[key]) for key in ("seconds", "unmatched")
        )
        return cls(seconds, unmatched, data["runs"])


class _Labelling(fx.Interpreter):
    """Runs a graph node by node and names, in the profile, the product that each call belongs to."""

    def __init__(self, gm: fx.GraphModule, graph: int) -> None:
        super().__init__(gm)
        self._graph = graph

    def run_node(self, n: fx.Node) -> Any:
        product = _product_of(n)
        if not product:
            return super().run_node(n)
        with record_function(f"{_LABEL} {self._graph} {product}"):
            return super().run_node(n)


def _product_of(node: fx.Node) -> str:
    """The product that a call belongs to; its own name where it is a product or a kernel of nobody in particular."""
    if built_for := node.meta.get(PRODUCT):
        return str(built_for)
    ours = isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "hadamard"
    return node.name if ours or node.target in LEFT_OPERAND else ""


def interpret_labelled(
    gm: fx.GraphModule, example_inputs: Sequence[Any], *, graph: int, **_: Any
) -> Callable[..., Any]:
    """A stand-in for Inductor's code generation; ``graph`` numbers the reports of one explanation."""
    interpreter = _Labelling(gm, graph)

    def boxed(arguments: list[Any]) -> Any:
        return interpreter.boxed_run(arguments)

    boxed._boxed_call = True  # type: ignore[attr-defined]
    return boxed


def measure(step: Callable[[], Any], *, runs: int = RUNS) -> dict[tuple[int, str], float]:
    """Seconds of every product, by graph and name: the median over ``runs`` steps, forward and backward.

    No gradient is accumulated.
    """
    found: dict[tuple[int, str], list[float]] = defaultdict(list)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    _forward_and_backward(step)
    for _ in range(runs):
        with profile(activities=activities, acc_events=True) as profiled:
            _forward_and_backward(step)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        once: dict[tuple[int, str], float] = defaultdict(float)
        for event in profiled.events() or ():
            if event.name.startswith(f"{_LABEL} ") and event.device_type.name == "CPU":
                _, graph, product = event.name.split(" ", 2)
                # The children are the operators alone, without the interpreter around them.
                on_cpu = sum(child.cpu_time_total for child in event.cpu_children)
                once[int(graph), product] += 1e-6 * (event.device_time_total or on_cpu)
        for key, seconds in once.items():
            found[key].append(seconds)
    return {key: statistics.median(seconds) for key, seconds in found.items()}


def measured_of(times: dict[tuple[int, str], float], graph: int, plan: Plan, runs: int = RUNS) -> Measured:
    """What was measured of one graph, in the order of its plan."""
    own = {product: seconds for (number, product), seconds in times.items() if number == graph}
    products = [decision.gemm.node for decision in plan.decisions]
    seconds = tuple((node, own.pop(node)) for node in products if node in own)
    return Measured(seconds, tuple(own.items()), runs)


def _forward_and_backward(step: Callable[[], Any]) -> None:
    results = [leaf for leaf in compat.tree_leaves(step()) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
    leaves = list(_leaves(results))
    if leaves:
        torch.autograd.grad(results, leaves, [torch.ones_like(result) for result in results], allow_unused=True)


def _leaves(results: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The tensors whose gradients a backward would accumulate."""
    stack: list[Any] = [result.grad_fn for result in results]
    seen = set(stack)
    while stack:
        function = stack.pop()
        if function is None:
            continue
        if hasattr(function, "variable"):
            yield function.variable
        for below, _ in function.next_functions:
            if below not in seen:
                seen.add(below)
                stack.append(below)
