"""The order of the passes, with the laws between them.

joint graph ─ FindGemms ─ ChooseSchemes ⇒ Plan ─ RewriteGemms ─ (Inductor's joint passes) ─ partition
    └─ forward graph, backward graph ─ FindProducers ⇒ sites ─ FuseProducers

The producers are fused right after the partition and not in a post-grad hook: Inductor compiles the backward when it
first runs, after the report was written, and takes it from a cache without running any hook.

On every device the ``hadamard::*`` operators stay opaque calls of the project's own kernels.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.fx as fx

from hadamard_fx import compat
from hadamard_fx.cost_model.device_profile import DeviceProfile
from hadamard_fx.fusion import Fusion
from hadamard_fx.kernels import ahead
from hadamard_fx.kernels.library import Kernel, load
from hadamard_fx.plan import Plan
from hadamard_fx.policy import Policy

from .choose import ChooseSchemes
from .find_gemms import FindGemms
from .find_producers import FindProducers
from .fuse_producers import FuseProducers
from .joint_graph import GraphInput, JointGraph
from .laws import VALUES_MATCH, enforce
from .partition import Partitioner, SavedTensor, partition, saved_tensors
from .rewrite import RewriteGemms


@dataclass
class Pipeline:
    """The passes of one compilation and what they found.

    Attributes:
        policy, profile, inputs: everything that decides.
        runs: the result will be run, so that its kernels are worth compiling.
        plan: the decisions, once the joint graph was seen.
        saved: what the forward keeps, once the graph was partitioned.
        saved_exact: what it would keep with every product left alone.
        fusible: types of the devices whose kernels evaluate producers.
        fusions: what became of the producers of the tensors that are quantised.
    """

    policy: Policy
    profile: DeviceProfile
    inputs: tuple[GraphInput, ...]
    runs: bool = False
    plan: Plan | None = None
    saved: tuple[SavedTensor, ...] = ()
    saved_exact: tuple[SavedTensor, ...] | None = None
    fusible: frozenset[str] = frozenset({"cuda"})
    fusions: tuple[Fusion, ...] = ()
    _before: fx.GraphModule | None = field(default=None, repr=False)

    def rewrite_joint(self, graph: fx.Graph) -> None:
        """Decide on every product of a joint or inference graph and rewrite it in place.

        Raises:
            LawViolation: a pass broke the graph.
        """
        joint = JointGraph(graph, self.inputs)
        find, choose = FindGemms(), ChooseSchemes(self.policy, self.profile)
        gemms = find.analyse(joint)
        decisions = choose.decide(gemms)
        plan = Plan(decisions, self.profile.name, joint.training, self.policy.settings)
        enforce(joint, plan, choose.name)
        self.plan, self.fusions = plan, ()
        if not plan.rewrites():
            return
        compiles = self.runs and any(decision.gemm.device == "cuda" for decision in plan.rewrites())
        if compiles:
            ahead.start()
        self._before = _copy(graph)
        rewrite = RewriteGemms(plan)
        rewrite.rewrite(joint)
        enforce(JointGraph(graph, self.inputs), plan, rewrite.name)
        if compiles:  # what fusing will not change, while the graph is partitioned
            calls = _kernel_calls(graph)
            ahead.prepare(call for call in calls if call[0].name not in ("quantize_rows", "compress_tokens"))
        if not joint.training:
            self._fuse(graph, forward=True)  # nothing will be partitioned

    def partition(
        self, joint: fx.GraphModule, joint_inputs: object, inner: Partitioner, *, num_fwd_outputs: int, **kwargs: object
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        """Split the joint graph and measure what is kept, with and without the rewrites."""
        if self._before is not None:
            forward, _ = inner(self._before, joint_inputs, num_fwd_outputs=num_fwd_outputs, **kwargs)
            self.saved_exact = saved_tensors(JointGraph(forward.graph, self.inputs), num_fwd_outputs)
            self._before = None
        parts = partition(joint, joint_inputs, inner, num_fwd_outputs=num_fwd_outputs, **kwargs)
        for part, is_forward in zip(parts, (True, False), strict=True):
            self._fuse(part.graph, forward=is_forward)
        self.saved = saved_tensors(JointGraph(parts[0].graph, self.inputs), num_fwd_outputs)
        if self.saved_exact is None:
            self.saved_exact = self.saved
        return parts

    def _fuse(self, graph: fx.Graph, *, forward: bool) -> None:
        """Let quantising kernels evaluate the producers of what they read, and start to compile all kernels."""
        joint = JointGraph(graph, self.inputs)
        sites, facts = FindProducers(self.fusible, stores=not forward).analyse(joint)
        fuse = FuseProducers(sites)
        fuse.rewrite(joint)
        if sites:
            enforce(JointGraph(graph, self.inputs), None, fuse.name, (VALUES_MATCH,))
            if graph.owning_module is not None:
                graph.owning_module.recompile()
        self.fusions += facts
        if self.runs:
            ahead.prepare(_kernel_calls(graph))


def _kernel_calls(graph: fx.Graph) -> Iterator[tuple[Kernel, tuple[Any, ...]]]:
    """The calls of this project's operators, with fake tensors."""
    kernels = {kernel.op: kernel for kernel in load().values()}
    for node in graph.nodes:
        if node.target in kernels:
            yield kernels[node.target], fx.map_arg(node.args, lambda operand: operand.meta["val"])


def _copy(graph: fx.Graph) -> fx.GraphModule:
    """A graph module of its own, to be partitioned beside the rewritten one."""
    copy = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    outputs = copy.graph_copy(graph, values)
    copy.output(outputs)
    next(iter(reversed(copy.nodes))).meta = dict(next(iter(reversed(graph.nodes))).meta)
    owner = graph.owning_module
    return fx.GraphModule(owner if owner is not None else {}, copy)


@functools.cache
def source_digest() -> str:
    """SHA-256 over the sources of all passes and of the words they speak: part of every cache key."""
    digest = hashlib.sha256()
    package = Path(compat.__file__).resolve().parent
    folders = (Path(__file__).resolve().parent, package, Path(__file__).resolve().parent.parent / "cost_model")
    for folder in folders:
        for path in sorted(folder.glob("*.py")) + sorted(folder.glob("schemes/*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()
