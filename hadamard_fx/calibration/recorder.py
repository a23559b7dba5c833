"""A backend that changes nothing: it finds the products of every graph and looks at them while that is interpreted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx as fx

from hadamard_fx import compat
from hadamard_fx.backend import GraphHook, device_type
from hadamard_fx.cost_model.calibration import CALIBRATED, CalibratedProduct, calibration_of
from hadamard_fx.cost_model.device_profile import DeviceProfile, profile_for
from hadamard_fx.kernels import library
from hadamard_fx.passes.choose import ChooseSchemes
from hadamard_fx.passes.find_gemms import LEFT_OPERAND, FindGemms
from hadamard_fx.passes.joint_graph import JointGraph, describe_inputs
from hadamard_fx.passes.rule import QUANTISABLE, why_not_quantised
from hadamard_fx.plan import Gemm, Role, Scheme
from hadamard_fx.policy import Policy

from .product_sums import ProductSums

__all__ = ["Recorder"]


class Recorder:
    """The products that were seen so far.

    Args:
        device_profile: as the option of that name.
    """

    def __init__(self, device_profile: str | None = None) -> None:
        self._device_profile = device_profile
        self._found: dict[tuple[str, Role], tuple[Gemm, DeviceProfile]] = {}
        self._sums: dict[tuple[str, Role], ProductSums] = {}

    def products(self) -> tuple[CalibratedProduct, ...]:
        """Every product of a layer, in the order of the graphs."""
        return tuple(self._of(key).product() for key in self._found)

    def choose(self, policy: Policy) -> dict[tuple[str, Role], Scheme]:
        """What the policy, whose calibration is the one recorded here, makes of the products."""
        profile = next(profile for _, profile in self._found.values())
        decisions = ChooseSchemes(policy, profile, calibration_of(policy.calibration)).decide(self.gemms)
        return {(decision.gemm.layer, decision.gemm.role): decision.scheme for decision in decisions}

    @property
    def gemms(self) -> tuple[Gemm, ...]:
        """The products as they were first found."""
        return tuple(gemm for gemm, _ in self._found.values())

    def _of(self, key: tuple[str, Role]) -> ProductSums:
        """Made when a product first runs: while its graph is traced every tensor is a fake one."""
        if key not in self._sums:
            self._sums[key] = ProductSums(*self._found[key])
        return self._sums[key]

    def backend(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """The backend of ``torch.compile``."""
        library.load()
        inputs = describe_inputs(gm, example_inputs)
        profile = profile_for(device_type(example_inputs), self._device_profile)
        found: dict[str, Gemm] = {}

        def find(graph: fx.Graph) -> None:
            for gemm in FindGemms().analyse(JointGraph(graph, inputs)):
                if gemm.role in CALIBRATED and gemm.dtype in QUANTISABLE:
                    found[gemm.node] = gemm
                    self._found.setdefault((gemm.layer, gemm.role), (gemm, profile))

        def interpreted(part: fx.GraphModule, example_inputs: Sequence[Any], **_: Any) -> Callable[..., Any]:
            backward = any("tangents" in str(node.target) for node in part.graph.find_nodes(op="placeholder"))

            def boxed(arguments: list[Any]) -> Any:
                inputs = list(arguments)
                arguments.clear()
                return _Watched(part, found, backward, self._look).run(*inputs)

            boxed._boxed_call = True  # type: ignore[attr-defined]
            return boxed

        patches = {
            "joint_custom_pre_pass": GraphHook("joint_custom_pre_pass", find, None),
            "force_disable_caches": True,
            "shape_padding": False,  # it would put other products in the place of those that were found
        }
        arguments: dict[str, Any] = {"inner_compile": interpreted}
        compiled: Any = compat.compile_fx(gm, example_inputs, config_patches=patches, **arguments)
        result: Callable[..., Any] = compiled
        return result

    def _look(self, gemm: Gemm, left: torch.Tensor, right: torch.Tensor) -> None:
        if not why_not_quantised(gemm):
            self._of((gemm.layer, gemm.role)).add(gemm, left, right)


class _Watched(fx.Interpreter):
    """Runs one half of a graph; a product that is computed again in the backward is not looked at again."""

    def __init__(
        self,
        part: fx.GraphModule,
        gemms: dict[str, Gemm],
        backward: bool,
        look: Callable[[Gemm, torch.Tensor, torch.Tensor], None],
    ) -> None:
        super().__init__(part)
        self._gemms, self._backward, self._look = gemms, backward, look

    def run_node(self, n: fx.Node) -> Any:
        gemm = self._gemms.get(n.name) if n.target in LEFT_OPERAND else None
        if gemm is not None and bool(gemm.gradient) is self._backward:
            first = LEFT_OPERAND[n.target]
            arguments, _ = self.fetch_args_kwargs_from_env(n)
            with torch.no_grad():
                self._look(gemm, arguments[first], arguments[first + 1])
        return super().run_node(n)
