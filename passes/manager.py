"""The order of the passes, with the laws between them.

joint graph ─ find ─ choose ⇒ Plan ─ rewrite ─ (Inductor's joint passes) ─ partition
    └─ forward graph, backward graph ─ producers ⇒ sites ─ fuse

Passes of others stand among these stages (``base``): those that decide between choose and rewrite, those that edit
between rewrite and partition. ``order`` sorts them, ``runner`` runs stages and passes alike.

The producers are fused right after the partition and not in a post-grad hook: Inductor compiles the backward when it
first runs, after the report was written, and takes it from a cache without running any hook.

On every device the ``hadamard::*`` operators stay opaque calls of the project's own kernels.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.fx as fx

from hadamard_fx import compat
from hadamard_fx.cost_model.calibration import Calibration, calibration_of
from hadamard_fx.cost_model.device_profile import DeviceProfile
from hadamard_fx.fusion import Fusion
from hadamard_fx.kernels import ahead
from hadamard_fx.kernels.library import Kernel, load
from hadamard_fx.pass_record import PassRecord
from hadamard_fx.plan import Plan
from hadamard_fx.policy import Policy

from .base import Effect
from .choose import ChooseSchemes
from .dump import Dump
from .error_bound import result_errors, summary
from .expected_error import with_errors
from .find_gemms import FindGemms
from .find_producers import FindProducers
from .foreseen_bytes import ForeseenBytes, copy_of
from .fuse_producers import FuseProducers
from .graph_record import GraphRecord, record_nodes
from .guard_sizes import guard_sizes
from .identity import Identity, identify
from .joint_graph import GraphInput, JointGraph, module_of
from .liveness import peak_bytes
from .one_read import FindOneReads
from .order import Placed, in_order, unknown_neighbours
from .partition import Partitioner, SavedTensor, partition, saved_tensors
from .products_elsewhere import products_elsewhere
from .read_twice import ReadTwice
from .registry import PASSES, active
from .rewrite import RewriteGemms
from .runner import Runner, State, Step, step_of

REBUILT = (
    "the memory budget is below what the schemes keep: activations are rebuilt in the backward, which takes time that "
    "no price knows of"
)


@dataclass
class Pipeline:
    """The passes of one compilation and what they found.

    Attributes:
        policy, profile, inputs: everything that decides, beside the passes of others.
        runs: the result will be run, so that its kernels are worth compiling.
        calibration: what the policy's option of that name means.
        passes: those of others, with their options; all that are registered, as the policy says.
        plan: the decisions, once the joint graph was seen.
        saved: what the forward keeps, once the graph was partitioned.
        saved_exact: what it would keep with every product left alone.
        fusible: types of the devices whose kernels evaluate producers.
        fusions: what became of the producers of the tensors that are quantised.
        elsewhere: which products are not looked at, in a sentence.
        records_graphs: keep all nodes of the joint graph before and after the passes; they are many.
        graphs: those nodes.
        loops: a sentence for each loop that could not be rolled up.
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
    elsewhere: str = ""
    records_graphs: bool = False
    graphs: GraphRecord | None = None
    loops: tuple[str, ...] = ()
    calibration: Calibration | None = field(init=False, repr=False)
    passes: tuple[Placed, ...] = field(init=False)
    _before: fx.GraphModule | None = field(default=None, repr=False)
    _runner: Runner = field(default_factory=Runner, repr=False)

    def __post_init__(self) -> None:
        self.calibration = calibration_of(self.policy.calibration)
        self.passes = active(self.policy.passes)
        self._order = in_order(self.passes, PASSES)

    @property
    def records(self) -> tuple[PassRecord, ...]:
        """Of every pass that ran, in order."""
        return tuple(self._runner.records)

    @functools.cached_property
    def identity(self) -> Identity:
        """Of the passes and schemes of others, for cache keys."""
        return identify(self.passes, self._order)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know about the passes, a sentence each."""
        rebuilt = self.plan is not None and self.plan.activation_budget < 1
        of_passes = (*unknown_neighbours(self.passes, PASSES), *self.identity.unknown, *self.loops)
        return (*filter(None, (self.elsewhere,)), *of_passes, *((REBUILT,) if rebuilt else ()))

    def leave_alone(self, reason: str) -> None:
        """Have no pass run; the report gives the reason."""
        self.plan, self.elsewhere = Plan((), self.profile.name, False, self.policy.settings), reason

    def rewrite_joint(self, graph: fx.Graph) -> None:
        """Decide on every product of a joint or inference graph and rewrite it in place.

        Raises:
            LawViolation: a pass broke the graph. PassEffectError, PassFailure: somebody's pass went wrong.
        """
        joint = JointGraph(graph, self.inputs)
        state = State(joint, "joint" if joint.training else "inference")
        self.plan, self.fusions, self._runner = None, (), Runner(dump=Dump.from_environment())
        self._runner.start(state)
        before = record_nodes(graph) if self.records_graphs else ()
        split = self._order.index("partition")
        for name in self._order[:split]:
            self._runner.run(self._step(name), state)
        self.plan = state.plan
        self.graphs = GraphRecord(before, record_nodes(graph)) if self.records_graphs else None
        if state.part == "inference":  # nothing will be partitioned
            self._behind_partition(graph, state.part)

    def partition(
        self, joint: fx.GraphModule, joint_inputs: object, inner: Partitioner, *, num_fwd_outputs: int, **kwargs: object
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        """Split the joint graph and measure what is kept, with and without the rewrites."""
        if self._before is not None:
            forward, _ = inner(self._before, joint_inputs, num_fwd_outputs=num_fwd_outputs, **kwargs)
            self.saved_exact = saved_tensors(JointGraph(forward.graph, self.inputs), num_fwd_outputs)
            self._before = None
        with compat.activation_budget(1.0 if self.plan is None else self.plan.activation_budget):
            parts = partition(joint, joint_inputs, inner, num_fwd_outputs=num_fwd_outputs, **kwargs)
        for part, name in zip(parts, ("forward", "backward"), strict=True):
            self._behind_partition(part.graph, name)
        self.saved = saved_tensors(JointGraph(parts[0].graph, self.inputs), num_fwd_outputs)
        if self.saved_exact is None:
            self.saved_exact = self.saved
        return parts

    def _behind_partition(self, graph: fx.Graph, part: str) -> None:
        """Let quantising kernels evaluate the producers of what they read, and start to compile all kernels."""
        state = State(JointGraph(graph, self.inputs), part, self.plan)
        if part != "inference":
            self._runner.start(state)
        split = self._order.index("partition")
        for name in self._order[split + 1 :]:
            self._runner.run(self._step(name), state)
        if state.sites and graph.owning_module is not None:
            graph.owning_module.recompile()
        if self.runs:
            ahead.prepare(_kernel_calls(graph))

    def _step(self, name: str) -> Step:
        """A stage of ours, or somebody's pass, ready to run."""
        stages = {
            "find": Step(name, Effect.OBSERVES, self._find),
            "choose": Step(name, Effect.DECIDES, self._choose),
            "rewrite": Step(name, Effect.REWRITES, self._rewrite),
            "producers": Step(name, Effect.OBSERVES, self._producers),
            "fuse": Step(name, Effect.REWRITES, self._fuse),
        }
        theirs = {entry.name: entry.run for entry in self.passes}
        return stages[name] if name in stages else step_of(theirs[name], self.profile)

    def _find(self, state: State) -> dict[str, Any]:
        state.gemms = FindGemms().analyse(state.joint)
        self.elsewhere = products_elsewhere(state.joint.graph)
        return {"products": len(state.gemms)}

    def _choose(self, state: State) -> dict[str, Any]:
        reads = FindOneReads(self.fusible).analyse(state.joint, state.gemms)
        kept = ForeseenBytes(state.joint).kept if state.part == "joint" else None
        chooser = ChooseSchemes(self.policy, self.profile, self.calibration)
        chosen = chooser.choose(state.gemms, reads, kept)
        facts = (self.profile.name, state.part == "joint", self.policy.settings)
        state.plan = Plan(chosen.decisions, *facts, chosen.activation_budget)
        guard_sizes(state.joint, state.plan)
        return dict(summary(result_errors(state.joint, state.plan, self.calibration)))

    def _rewrite(self, state: State) -> dict[str, int]:
        """Edit the graph; the facts are the most bytes that live at a time, by the liveness of the joint graph."""
        exact = _peak(state.joint)
        self._edit(state)
        return {f"{name}_bytes": peak for name, peak in (("peak_exact", exact), ("peak", _peak(state.joint))) if peak}

    def _edit(self, state: State) -> None:
        graph, plan = state.joint.graph, state.plan
        assert plan is not None
        # What passes of others chose has no error yet.
        plan = state.plan = replace(plan, decisions=tuple(with_errors(d, self.calibration) for d in plan.decisions))
        if (
            plan.rewrites()
            or plan.activation_budget < 1
            or any(entry.run.effect() is Effect.REWRITES for entry in self.passes)
        ):
            self._before = copy_of(graph)
        if not plan.rewrites():
            return
        compiles = self.runs and any(decision.gemm.device == "cuda" for decision in plan.rewrites())
        if compiles:
            ahead.start()
        RewriteGemms(plan).rewrite(state.joint)
        if compiles:  # what fusing will not change, while the graph is partitioned
            calls = _kernel_calls(graph)
            ahead.prepare(call for call in calls if call[0].name not in ("quantize_rows", "compress_tokens"))

    def _producers(self, state: State) -> dict[str, Any]:
        state.sites, facts = FindProducers(self.fusible, stores=state.part == "backward").analyse(state.joint)
        self.fusions += facts
        return {"sites": len(state.sites)}

    def _fuse(self, state: State) -> dict[str, Any]:
        FuseProducers(state.sites).rewrite(state.joint)
        state.joint = JointGraph(state.joint.graph, state.joint.inputs)
        split = ReadTwice().rewrite(state.joint)
        for call, again in split:
            tensor = "g_y" if call in state.joint.tangent_closure else "x"
            self.fusions = tuple(f.read_twice(module_of(call), tensor, again) for f in self.fusions)
        return {"read twice": [module_of(call) for call, _ in split]}


def _peak(joint: JointGraph) -> int:
    """0 where a size is symbolic."""
    values = (node.meta.get("val") for node in joint.graph.nodes)
    if any(isinstance(v, torch.Tensor) and not all(isinstance(n, int) for n in v.shape) for v in values):
        return 0
    return peak_bytes(joint)


def _kernel_calls(graph: fx.Graph) -> Iterator[tuple[Kernel, tuple[Any, ...]]]:
    """The calls of this project's operators, with fake tensors."""
    kernels = {kernel.op: kernel for kernel in load().values()}
    for node in graph.nodes:
        if node.target in kernels:
            yield kernels[node.target], fx.map_arg(node.args, lambda operand: operand.meta["val"])


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
