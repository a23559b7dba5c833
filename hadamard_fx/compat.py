"""Every private or moving name of torch, in one file (torch 2.11 .. newest).

What is here was found by reading torch's source; when a release moves a name, this file is the only one to mend.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, get_origin

import torch
import torch.fx as fx
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo import config as dynamo_config
from torch._dynamo.exc import BackendCompilerFailed
from torch._functorch._aot_autograd.descriptors import DummyAOTOutput, GradAOTOutput, ParamAOTInput, PlainAOTInput
from torch._inductor import config as inductor_config
from torch._inductor import inductor_prims, list_mode_options
from torch._inductor.codecache import CppCodeCache
from torch._inductor.compile_fx import compile_fx
from torch._inductor.custom_graph_pass import CustomGraphPass, CustomPartitionerFn
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.runtime.cache_dir_utils import cache_dir
from torch._logging._internal import trace_structured
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.utils._pytree import tree_leaves

__all__ = [
    "BackendCompilerFailed",
    "CustomGraphPass",
    "CustomPartitionerFn",
    "activation_budget",
    "any_number_of_compilations",
    "arguments",
    "around_wrong_code",
    "cache_dir",
    "compilation_state",
    "compile_fx",
    "exact_partition",
    "expected_inductor_value",
    "forget_compiled",
    "fresh_fake_mode",
    "guard_side",
    "inductor_options_of_mode",
    "input_descriptor",
    "input_position",
    "is_gradient",
    "known_inductor_option",
    "load_cpp",
    "lookup_hint",
    "module_path",
    "nested_regions",
    "placeholder_descriptor",
    "random_op",
    "seeds_op",
    "source_name",
    "statically_known_true",
    "symbol",
    "tensors",
    "trace",
    "trace_artifact",
    "tree_leaves",
    "user_hook",
]

seeds_op = inductor_prims.seeds
"""``prims.inductor_seeds(count, device) -> int64[count]``: drawn from the device's generator, reproducible under
``torch.manual_seed``."""


random_op = inductor_prims.random
"""``prims.inductor_random(size, seed, "rand") -> float32[size]``: a pure function of its seed, once compiled."""


def trace(function: Callable[..., torch.Tensor], values: Sequence[torch.Tensor]) -> fx.Graph:
    """The ops that a function of tensors is made of, those that Inductor would decompose decomposed.

    Args:
        values: fake tensors, symbolic sizes included.
    """
    with fresh_fake_mode(values), enable_python_dispatcher():
        traced = make_fx(function, decomposition_table=select_decomp_table())(*values)
    traced.graph.eliminate_dead_code()
    graph: fx.Graph = traced.graph
    return graph


def lookup_hint(size: int | torch.SymInt) -> int:
    """The number that a size has in the example inputs; never guards on it."""
    if isinstance(size, int):
        return size
    hint = size.node.hint if size.node.has_hint() else None
    return 1 if hint is None else int(hint)


def guard_side(size: int | torch.SymInt, bound: int) -> None:
    """Let the compiled code hold only where ``size`` is on the side of ``bound``, at least or below, on which its hint
    is; others recompile. A size without a hint has no side."""
    if isinstance(size, torch.SymInt) and size.node.has_hint():
        bool(size >= bound)


def symbol(size: int | torch.SymInt) -> str:
    """The expression of a symbolic size, ``""`` for a number."""
    return "" if isinstance(size, int) else str(size.node.expr)


def source_name(placeholder: fx.Node) -> str:
    """Dynamo's name of a graph input, ``"L['self']._modules['fc']._parameters['weight']"``; ``""`` when unknown."""
    source = getattr(placeholder.meta.get("grapharg"), "source", None)
    name = getattr(source, "name", "")
    return str(name() if callable(name) else name)


def input_position(placeholder: fx.Node) -> tuple[int | None, str]:
    """(position in the backend's example inputs, "") of a joint graph's placeholder, or (None, parameter name).

    Where AOTAutograd lifted the parameters itself, the descriptor carries the parameter's name instead of a position.
    """
    descriptor = placeholder.meta.get("desc")
    if isinstance(descriptor, ParamAOTInput):
        return None, str(descriptor.target)
    if isinstance(descriptor, PlainAOTInput):
        return descriptor.idx, ""
    return None, ""


def input_descriptor(position: int) -> PlainAOTInput:
    """What ``input_position`` reads: the descriptor of a placeholder that is input number ``position``."""
    return PlainAOTInput(position)


def placeholder_descriptor(index: int) -> DummyAOTOutput:
    """A descriptor for a joint output that does not outlive the partition."""
    return DummyAOTOutput(index)


def is_gradient(descriptor: object) -> bool:
    """A result of a joint graph, by its descriptor, is a gradient and no result of the forward."""
    return isinstance(descriptor, GradAOTOutput)


def fresh_fake_mode(values: Sequence[Any]) -> FakeTensorMode:
    """The fake mode that the fake tensors among the given values, or in lists among them, live in, or a new one."""
    known = next((tensor.fake_mode for tensor in tensors(values) if isinstance(tensor, FakeTensor)), None)
    return FakeTensorMode() if known is None else known


def tensors(values: Sequence[Any]) -> Iterator[torch.Tensor]:
    """The tensors among some arguments, those in lists included."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors(value)


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an operator's call by name, defaults included."""
    assert isinstance(node.target, torch._ops.OpOverload)
    declared = node.target._schema.arguments
    values = {argument.name: argument.default_value for argument in declared}
    values.update({argument.name: given for argument, given in zip(declared, node.args, strict=False)})
    return {**values, **node.kwargs}


def is_fake(value: Any) -> bool:
    """Whether a tensor has sizes but no memory."""
    return isinstance(value, FakeTensor)


def trace_artifact(name: str, payload: Callable[[], str]) -> None:
    """Put JSON into torch's structured trace, which ``tlparse`` shows; made only where ``TORCH_TRACE`` asks for one."""
    trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": name, "encoding": "json"},
        payload_fn=payload,
        expect_trace_id=False,  # a backend may be called without dynamo
    )


def triton_cache_directory(device: int) -> str:
    """Where Inductor has Triton keep compiled kernels."""
    from torch._inductor.runtime.cache_dir_utils import triton_cache_dir

    return triton_cache_dir(device)


def triton_launcher(made: Any, grid: tuple[int, int, int]) -> Callable[..., None]:
    """What launches a compiled Triton kernel on a stream, as Inductor's code does: past what Triton gathers for
    profilers on every launch, unless one has hooked in."""
    from triton import knobs

    run, function, metadata, runtime = made.run, made.function, made.packed_metadata, knobs.runtime
    watched = made[grid]

    def launch(stream: int, *arguments: int) -> None:
        if _hooked(runtime.launch_enter_hook) or _hooked(runtime.launch_exit_hook):
            watched(*arguments, stream=stream)
        else:
            run(*grid, stream, function, metadata, None, None, None, *arguments)

    return launch


def _hooked(hook: Any) -> bool:
    return bool(getattr(hook, "calls", hook))


def compile_threads() -> int:
    """How many threads or processes the user lets Inductor compile with (``TORCHINDUCTOR_COMPILE_THREADS``)."""
    from torch._inductor import config

    return int(config.compile_threads or 1)


def keeps_casts() -> bool:
    """Whether the user has Inductor round where the graph casts, in the middle of a kernel (as eager does)."""
    from torch._inductor import config

    return bool(config.emulate_precision_casts)


def raw_stream(device: int) -> int:
    """The address of the current stream of a CUDA device."""
    stream: int = torch._C._cuda_getCurrentRawStream(device)
    return stream


def current_device() -> int:
    """The current CUDA device, without ``torch.cuda``'s look whether CUDA is there."""
    device: int = torch._C._cuda_getDevice()
    return device


def empty_strided(device: torch.device) -> Callable[..., torch.Tensor]:
    """What makes an uninitialised tensor from shape, strides and dtype: on a CUDA device, the current one, as
    Inductor's code does."""
    if device.type == "cuda":
        made: Callable[..., torch.Tensor] = getattr(torch._C._dynamo.guards, "_empty_strided_cuda")  # noqa: B009 (no CPU build has it)
        return made
    return lambda shape, strides, dtype: torch.empty_strided(shape, strides, dtype=dtype, device=device)


def call_at_sites(op: Any, sites: Callable[..., Any]) -> None:
    """Have Inductor's Python code call ``sites(site, *arguments)`` in place of an operator, wherever tensors are on a
    CUDA device and all sizes and strides are numbers. ``site`` is a digest of them, of dtypes, device and settings.

    Args:
        op: an overload, ``torch.ops.hadamard.quantize_rows.default``.
        sites: found by that code, in whatever process, as the attribute ``at`` of the operator.
    """
    from torch._inductor import ir, lowering
    from torch.utils._pytree import tree_map

    op.overloadpacket.at = sites
    kernel = _site_kernel(op)

    def lower(*args: Any, **kwargs: Any) -> Any:
        made = kernel.create(op, *args, **kwargs)
        return tree_map(lambda result: ir.TensorBox.create(result) if isinstance(result, ir.IRNode) else result, made)

    lowering.make_fallback(op, warn=False)
    lowering.register_lowering(op, type_promotion_kind=None)(lower)


SITE_DEVICES = ("cuda",)
"""Types of the devices whose operators are called at sites."""


def _site_kernel(op: Any) -> Any:
    """The class of an operator's nodes in Inductor's IR, which write the calls."""
    from torch._inductor import ir
    from torch._inductor.virtualized import V

    class SiteKernel(ir.FallbackKernel):
        site = ""

        def codegen(self, wrapper: Any) -> None:
            if not V.graph.cpp_wrapper:
                self.site = self.describe()
            if self.site:
                self.python_kernel_name = f"torch.ops.{op.overloadpacket}.at"
            super().codegen(wrapper)

        def codegen_args(self) -> list[str]:
            arguments: list[str] = super().codegen_args()
            return [repr(self.site), *arguments] if self.site else arguments

        def describe(self) -> str:
            layouts = []
            inputs: Sequence[Any] = self.inputs
            for tensor in inputs:
                sizes, strides = map(tuple, (tensor.get_size(), tensor.get_stride()))
                if tensor.get_device().type not in SITE_DEVICES or not all(
                    str(extent).isdigit() for extent in sizes + strides
                ):
                    return ""
                layouts.append(f"{sizes} {strides} {tensor.get_dtype()} {tensor.get_device()}")
            facts = (str(op), self.unflatten_args(layouts, self.constant_args), self.kwargs)
            return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    return SiteKernel


@contextmanager
def any_number_of_compilations() -> Iterator[None]:
    """Lift dynamo's limit of compilations per function, behind which it runs a function without its backend."""
    with dynamo_config.patch(recompile_limit=2**30, accumulated_recompile_limit=2**30):
        yield


def forget_compiled(model: torch.nn.Module) -> None:
    """Drop the code that dynamo keeps for the forward of a module's class, under whatever backend it was compiled."""
    from torch._C._dynamo.eval_frame import reset_code

    code = getattr(type(model).forward, "__code__", None)
    if code is not None:
        reset_code(code)


def activation_budget(share: float) -> AbstractContextManager[Any]:
    """Have ``exact_partition`` rebuild activations in the backward until about ``share`` of them is kept."""
    from torch._functorch import config

    patched: AbstractContextManager[Any] = config.patch(
        activation_memory_budget=min(share, config.activation_memory_budget)
    )
    return patched


def exact_partition(joint: fx.GraphModule, joint_inputs: Any, **kwargs: Any) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Inductor's own min-cut partition."""
    from functorch.compile import min_cut_rematerialization_partition

    kwargs.setdefault("compiler", "inductor")
    forward, backward = min_cut_rematerialization_partition(joint, joint_inputs, **kwargs)
    return forward, backward


def inductor_options_of_mode(mode: str) -> dict[str, Any]:
    """Inductor's settings behind ``torch.compile(mode=…)``; an unknown mode is torch's own RuntimeError."""
    return dict(list_mode_options(mode))


def known_inductor_option(name: str) -> bool:
    return name.replace("-", "_") in inductor_config.get_config_copy()


def expected_inductor_value(name: str, value: object) -> str:
    """What a setting takes, where ``value`` is of another type; ``""`` where it fits, as ``torch.compile`` judges."""
    expected: Any = inductor_config.get_type(name.replace("-", "_"))  # type: ignore[attr-defined]
    if get_origin(expected) is not None or isinstance(value, expected):
        return ""
    return getattr(expected, "__name__", str(expected))


def load_cpp(source: str) -> ctypes.CDLL:
    """Compile C++ by Inductor's builder (its compiler, flags, instruction set and disk cache) and load it.

    Raises:
        RuntimeError: no compiler works, or the source does not compile.
        OSError: the library does not load.
    """
    loaded = CppCodeCache.load(source)
    assert isinstance(loaded, ctypes.CDLL)
    return loaded


def around_wrong_code(graph: fx.Graph) -> dict[str, Any]:
    """Settings of Inductor without which it writes wrong code for what this project makes of a captured graph.

    Torch 2.13's C++ gives wrong sums where overlapping windows with a stride are folded and the last elements of a row
    do not fill a vector (3×3, stride 2, 8 channels, 15×15: 20 % off), unless these are left to a scalar loop.
    """
    setting = "cpp.enable_loop_tail_vec"
    convolves = any(node.op == "call_function" and "conv" in str(node.target) for node in graph.nodes)
    return {setting: False} if convolves and known_inductor_option(setting) else {}


def nested_regions(graph: fx.Graph) -> int:
    """How often a captured graph calls a region that ``torch.compiler.nested_compile_region`` compiles by itself."""
    return len(graph.find_nodes(op="call_function", target=torch.ops.higher_order.invoke_subgraph))


def compilation_state() -> str:
    """What torch's caches look at beside graph and inputs: the compiler's settings, and autocast around the call."""
    from torch._functorch import config as functorch_config

    casts = [(kind, str(torch.get_autocast_dtype(kind))) for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    hashes = [config.get_hash() for config in (functorch_config, inductor_config)]
    return repr((hashes, casts, torch.is_grad_enabled()))


def user_hook(name: str) -> Any:
    """The hook that the user has set in ``torch._inductor.config`` (``None`` when there is none)."""
    return getattr(inductor_config, name, None)


def module_path(stack_entry: str) -> str:
    """``"L['self'].blocks.0.fc"`` or ``"L['self']._modules['fc']"`` ⇒ ``"blocks.0.fc"`` / ``"fc"``."""
    parts = re.findall(r"\['([^']*)'\]|\[(\d+)\]|\.?([A-Za-z_0-9]+)", stack_entry)
    names = [next(filter(None, part), "") for part in parts]
    if names and names[0] in ("L", "G"):
        # Behind a decorator the model is the first of *args, whatever they are called.
        first = re.match(r"\w\['\w+'\]\[0\]", stack_entry)
        names = names[3:] if first else names[2:]
    if "cell_contents" in names:  # a model that a closure holds
        names = names[names.index("cell_contents") + 1 :]
    return ".".join(name for name in names if name not in ("_modules", "_parameters", "_buffers", "_orig_mod"))
