"""Compile a function with the backend's passes and without code generation, and look at what they did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx as fx

from hadamard_fx import compat
from hadamard_fx.cost_model.device_profile import profile_for
from hadamard_fx.kernels import library
from hadamard_fx.passes.joint_graph import describe_inputs
from hadamard_fx.passes.manager import Pipeline
from hadamard_fx.plan import Decision, Role
from hadamard_fx.policy import Policy
from hadamard_fx.report.explain import interpret

FINE = {
    "profile": "hot",
    "grad_input": {"bits": 8, "rounding": "nearest"},
    "grad_weight": {"rank": 16, "bits": 8, "rounding": "nearest"},
}
"""Full rank and 8 bits: every rewrite happens, and its result is within a few hundredths of the exact one."""


class _Hook(compat.CustomGraphPass):
    def __init__(self, run: Callable[[fx.Graph], None]) -> None:
        self.run = run

    def __call__(self, graph: fx.Graph) -> None:
        self.run(graph)

    def uuid(self) -> None:
        return None


class _Partition(compat.CustomPartitionerFn):
    def __init__(self, trace: Trace) -> None:
        self.trace = trace

    def __call__(self, gm: fx.GraphModule, joint_inputs: Any, **kwargs: Any) -> Any:
        pipeline = self.trace.pipelines[-1]
        forward, backward = pipeline.partition(gm, joint_inputs, compat.exact_partition, **kwargs)
        self.trace.forward.append(forward)
        self.trace.backward.append(backward)
        return forward, backward

    def uuid(self) -> None:
        return None


@dataclass
class Trace:
    """What the passes did to each graph of a function, in order."""

    pipelines: list[Pipeline] = field(default_factory=list)
    forward: list[fx.GraphModule] = field(default_factory=list)
    backward: list[fx.GraphModule] = field(default_factory=list)

    @property
    def decisions(self) -> list[Decision]:
        return [d for p in self.pipelines if p.plan is not None for d in p.plan.decisions]

    def roles(self, layer: str) -> list[Role]:
        return [d.gemm.role for d in self.decisions if d.gemm.layer == layer]

    def of(self, role: Role) -> list[Decision]:
        return [d for d in self.decisions if d.gemm.role is role]


def traced(
    function: Callable[..., Any],
    options: Mapping[str, Any] | None = None,
    fusible: frozenset[str] = frozenset(),
    **compile_arguments: Any,
) -> tuple[Callable[..., Any], Trace]:
    """``function`` compiled with the passes, interpreted without Inductor's code generation, and its trace.

    Args:
        fusible: types of the devices whose kernels evaluate producers.
    """
    trace = Trace()
    library.load()

    def backend(gm: fx.GraphModule, example_inputs: Any) -> Any:
        policy = Policy.resolve(options if options is not None else FINE, environ={}, directory="/")
        pipeline = Pipeline(policy, profile_for("cpu"), describe_inputs(gm, example_inputs), fusible=fusible)
        trace.pipelines.append(pipeline)
        patches = {
            "joint_custom_pre_pass": _Hook(pipeline.rewrite_joint),
            "custom_partitioner_fn": _Partition(trace),
            "force_disable_caches": True,
        }
        return compat.compile_fx(gm, example_inputs, config_patches=patches, inner_compile=interpret)

    torch._dynamo.reset()
    return torch.compile(function, backend=backend, **compile_arguments), trace


def ratio(found: torch.Tensor, expected: torch.Tensor) -> float:
    """‖found − expected‖ / ‖expected‖."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def gradients(
    function: Callable[..., torch.Tensor], module: torch.nn.Module, *inputs: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Gradients of ``function(*inputs)``'s mean square for the module's parameters and the inputs that want one."""
    module.zero_grad()
    for tensor in inputs:
        tensor.grad = None
    function(*inputs).float().square().mean().backward()
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    found.update({f"input {i}": t.grad.clone() for i, t in enumerate(inputs) if t.grad is not None})
    return found
