"""``torch.compile(model, backend="hadamard")``: Inductor with the passes of this project hooked in.

``compile_fx`` keeps the AOTAutograd cache, the FX graph cache, CUDA graphs, min-cut, checkpointing and dynamic
shapes. On a cache hit no pass runs, so ``uuid()`` covers everything that decides, and reports are stored under a key
of the same facts.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.fx as fx

from . import compat
from .cost_model.device_profile import profile_for
from .errors import OptionError
from .kernels import library
from .passes.dump import Dump
from .passes.joint_graph import describe_inputs
from .passes.manager import Pipeline, source_digest
from .passes.roll_loops import roll_loops
from .policy import Policy
from .report import history

Compiled = Callable[..., Any]

LONG = 8
"""Bits of a number of tokens from which on no scheme finds it too short: blocks have 128 at most."""

REGIONS = (
    "the model has regions that are compiled by themselves (torch.compiler.nested_compile_region), into which this "
    "backend does not look: the whole graph is left exact. Without the decorator it is rewritten"
)

HOOKS = ("joint_custom_pre_pass", "custom_partitioner_fn")
"""Of Inductor, taken by this backend, which composes them with the user's own."""


def hadamard(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Compiled:
    """The backend of ``torch.compile``.

    Args:
        gm: dynamo's graph.
        example_inputs: its inputs, parameters among them.
        mode: as in ``torch.compile``, ``"reduce-overhead"`` for instance.
        options: see ``hadamard_fx.policy``; ``docs/options.md`` lists them.

    Raises:
        OptionError: an option is unknown, of the wrong type or out of range.
    """
    return compile_graph(gm, example_inputs, Policy.resolve(options), mode=mode)


def compile_graph(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    policy: Policy,
    *,
    mode: str | None = None,
    inner_compile: Compiled | None = None,
    graphs: bool = False,
) -> Compiled:
    """Compile one graph under a resolved policy and record its report.

    Args:
        inner_compile: what turns a partitioned graph into code, Inductor where it is None.
        graphs: the report shall hold the joint graph before and after the passes.
    """
    library.load()
    left = roll_loops(gm) if policy.rolls_loops else ()
    inputs = describe_inputs(gm, example_inputs)
    profile = profile_for(device_type(example_inputs), policy.device_profile)
    pipeline = Pipeline(policy, profile, inputs, runs=inner_compile is None, records_graphs=graphs, loops=left)
    key = _graph_key(gm, example_inputs, pipeline)
    patches = {**_mode_patches(mode), **compat.around_wrong_code(gm.graph), **_inductor_patches(policy)}
    if compat.nested_regions(gm.graph):
        # Hooks would run for each region by itself, whose inputs are not those of the graph.
        pipeline.leave_alone(REGIONS)
    else:
        patches |= _hooks(pipeline)
    arguments: dict[str, Any] = {}
    if inner_compile is not None:  # what it makes is no code that torch's caches could keep
        arguments["inner_compile"] = inner_compile
        patches["force_disable_caches"] = True
    compiled: Any = compat.compile_fx(gm, example_inputs, config_patches=patches, **arguments)
    history.record(key, pipeline, quiet=inner_compile is not None)
    result: Compiled = compiled
    return result


def reset() -> None:
    """Forget the reports of this process; ``torch._dynamo.reset()`` calls it."""
    history.clear()


hadamard.reset = reset  # type: ignore[attr-defined]


def device_type(example_inputs: Sequence[Any]) -> str:
    """The type of the device that a graph runs on, by its inputs: ``"cuda"``."""
    types = [value.device.type for value in example_inputs if isinstance(value, torch.Tensor)]
    return next((kind for kind in types if kind != "cpu"), "cpu")


def _mode_patches(mode: str | None) -> dict[str, Any]:
    return compat.inductor_options_of_mode(mode) if mode and mode != "default" else {}


def _inductor_patches(policy: Policy) -> dict[str, Any]:
    patches = dict(policy.inductor)
    for name, value in patches.items():
        if name in HOOKS:
            raise OptionError(
                f"options['inductor']: {name!r} is a hook: set it on torch._inductor.config, and it runs before ours"
            )
        if not compat.known_inductor_option(name):
            raise OptionError(f"options['inductor']: torch._inductor.config has no setting {name!r}")
        expected = compat.expected_inductor_value(name, value)
        if expected:
            raise OptionError(f"options['inductor']: {name!r} takes a value of type {expected}, not {value!r}")
    return patches


def _hooks(pipeline: Pipeline) -> dict[str, Any]:
    decisive: str | None = _digest(pipeline)
    if pipeline.identity.unknown or Dump.wanted():
        decisive = None  # a hit would run no pass: it might be stale, and would dump nothing
    return {
        "joint_custom_pre_pass": GraphHook("joint_custom_pre_pass", pipeline.rewrite_joint, decisive),
        "custom_partitioner_fn": _PartitionHook(pipeline, decisive),
    }


def _digest(pipeline: Pipeline) -> str:
    facts = (
        pipeline.policy.digest(),
        pipeline.profile.digest(),
        pipeline.calibration.digest() if pipeline.calibration else "",
        repr(pipeline.inputs),
        repr(sorted(pipeline.fusible)),
        library.source_digest(),
        source_digest(),
        pipeline.identity.digest,
        torch.__version__,
    )
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()


def _graph_key(gm: fx.GraphModule, example_inputs: Sequence[Any], pipeline: Pipeline) -> str:
    """A name for this compilation that is the same in every process."""
    tensors = [
        (_extents(v.shape), _extents(v.stride()), str(v.dtype), str(v.device), v.requires_grad)
        if isinstance(v, torch.Tensor)
        else type(v).__name__
        for v in map(_as_traced, gm.graph.find_nodes(op="placeholder"), example_inputs)
    ]
    sizes = {compat.symbol(size): compat.lookup_hint(size) for size in _dynamic(gm)}
    # Decisions differ between short and long ones, each guarded: see passes/guard_sizes.py.
    length = min(math.prod(sizes.values()).bit_length(), LONG)
    code = "\n".join(line.partition("#")[0].rstrip() for line in gm.code.splitlines())
    facts = (_digest(pipeline), code, repr(tensors), str(length), compat.compilation_state())
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()


def _dynamic(gm: fx.GraphModule) -> Iterator[torch.SymInt]:
    """The sizes of inputs that are no numbers."""
    for placeholder in gm.graph.find_nodes(op="placeholder"):
        traced = placeholder.meta.get("example_value")
        sizes = traced.shape if isinstance(traced, torch.Tensor) else [traced]
        yield from (size for size in sizes if isinstance(size, torch.SymInt) and not compat.symbol(size).isdigit())


def _as_traced(placeholder: fx.Node, given: Any) -> Any:
    """An input as dynamo traced it, with dynamic sizes, where it says so."""
    return placeholder.meta.get("example_value", given)


def _extents(sizes: Sequence[int | torch.SymInt]) -> tuple[str, ...]:
    """Numbers, and dynamic sizes as expressions: their values are those of one call."""
    return tuple(compat.symbol(size) or str(size) for size in sizes)


def _uuid_of(hook: Any) -> tuple[bool, Any]:
    """(the hook can be cached, what identifies it)."""
    if hook is None:
        return True, None
    uuid = hook.uuid() if hasattr(hook, "uuid") else None
    return uuid is not None, uuid


class GraphHook(compat.CustomGraphPass):
    """One of Inductor's graph hooks: the user's own first, then ours."""

    def __init__(self, name: str, ours: Callable[[fx.Graph], None], decisive: str | None) -> None:
        theirs = compat.user_hook(name)
        self.theirs = list(theirs) if isinstance(theirs, (list, tuple)) else [theirs] if theirs is not None else []
        self.ours = ours
        self.decisive = decisive

    def __call__(self, graph: fx.Graph) -> None:
        for hook in self.theirs:
            hook(graph)
        self.ours(graph)

    def uuid(self) -> Any:
        found = [_uuid_of(hook) for hook in self.theirs]
        cacheable = self.decisive is not None and all(known for known, _ in found)
        return (self.decisive, *(uuid for _, uuid in found)) if cacheable else None


class _PartitionHook(compat.CustomPartitionerFn):
    """Our partition around the user's own partitioner, or around Inductor's min-cut."""

    def __init__(self, pipeline: Pipeline, decisive: str | None) -> None:
        self.theirs = compat.user_hook("custom_partitioner_fn")
        self.pipeline = pipeline
        self.decisive = decisive

    def __call__(self, gm: fx.GraphModule, joint_inputs: Any, **kwargs: Any) -> Any:
        inner = self.theirs if self.theirs is not None else compat.exact_partition
        return self.pipeline.partition(gm, joint_inputs, inner, **kwargs)

    def uuid(self) -> Any:
        cacheable, theirs = _uuid_of(self.theirs)
        return (self.decisive, theirs) if cacheable and self.decisive is not None else None
