"""What takes part in a benchmark: one word names one way to run a model. ``LEGEND`` has them all."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from _common import free
from torch import nn
from torch._functorch import config as functorch_config

import hadamard_fx
from hadamard_fx.cli import read_options
from hadamard_fx.compat import compile_fx

__all__ = [
    "FIELD",
    "LEGEND",
    "OUT_OF_MEMORY",
    "Unavailable",
    "attempt",
    "compile_with",
    "full_float32",
    "is_compiled",
    "measured_last",
    "options_of",
]

FIELD = (
    *("inductor", "inductor@0.8", "inductor@0.6", "inductor@0.4", "inductor@0.2"),
    *("torchao", "torchao_rowwise", "hot", "hot+forward=hadamard8", "auto", "eager32"),
)
"""All that a published training step is compared with."""

LEGEND = (
    ("`inductor`", "`torch.compile`: what all others are measured by"),
    (
        "`inductor@0.6`",
        "the same, which may keep that share of the activations for the backward and recomputes others",
    ),
    (
        "`torchao`, `torchao_rowwise`",
        "float8 training by torchao, one scale per tensor or per row; Inductor compiles it",
    ),
    ("`hot`, `auto`, …", "a profile of this project"),
    ("`hot+forward=hadamard8`", "a profile with options, written as `hadamard-fx explain -o` takes them"),
    ("`eager`, `eager32`", "no compiler; `eager32` has float32 weights and products, without TF32"),
)
"""(contenders, what they are), in Markdown."""

OUT_OF_MEMORY = "out of memory"

Target = Callable[..., Any]
Result = TypeVar("Result")


class Unavailable(RuntimeError):
    """A contender has nothing to offer for this model; the message says why."""


def compile_with(contender: str, target: Target, **options: Any) -> Target:
    """``target`` as ``contender`` runs it.

    Args:
        target: a module, or a function where the contender does not replace layers. torchao replaces them in place.
        options: further options of hadamard, for its profiles only.

    Raises:
        Unavailable: torchao finds no layer that it can convert. ImportError: a package is missing.
    """
    name, _, setting = contender.partition("@")
    if name in ("eager", "eager32"):
        return target
    if name == "inductor":
        return torch.compile(target, backend=_within_budget(float(setting)) if setting else "inductor")
    if name in ("torchao", "torchao_rowwise"):
        _convert_to_float8(target, "rowwise" if name.endswith("rowwise") else "tensorwise")
        return torch.compile(target, backend=_within_budget(1.0))
    return torch.compile(target, backend=hadamard_fx.hadamard, options={**options_of(contender), **options})


def options_of(contender: str) -> dict[str, Any]:
    """The options that a profile of hadamard and what follows it mean.

    ``"hot+forward=hadamard8"`` is ``{"profile": "hot", "forward": "hadamard8"}``.
    """
    profile, *settings = contender.split("+")
    return read_options([f"profile={profile}", *settings])


def is_compiled(contender: str) -> bool:
    """Whether there is a compiled graph, whose saved tensors can be counted."""
    return not contender.startswith("eager")


def measured_last(contenders: Sequence[str]) -> list[str]:
    """The order in which to compile: torchao patches Inductor's code generation for the rest of the process."""
    return sorted(contenders, key=lambda contender: contender.startswith("torchao"))


def _within_budget(budget: float) -> Callable[..., Target]:
    """Inductor that keeps at most ``budget`` (0 to 1) of what it would keep for the backward, and recomputes the rest.

    A backend of its own per contender, so that dynamo shares no compiled code between contenders.
    """

    def inductor(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Target:
        with functorch_config.patch(activation_memory_budget=budget):
            compiled: Any = compile_fx(graph, inputs)
        result: Target = compiled
        return result

    return inductor


def _convert_to_float8(module: Target, recipe: str) -> None:
    """Replace the linear layers of a module by torchao's for training in float8."""
    float8 = importlib.import_module("torchao.float8")
    if not isinstance(module, nn.Module):
        raise Unavailable("torchao converts the layers of a module, and this is a function")

    def fits(layer: nn.Module, name: str) -> bool:
        return isinstance(layer, nn.Linear) and layer.in_features % 16 == 0 and layer.out_features % 16 == 0

    if not any(fits(layer, name) for name, layer in module.named_modules()):
        raise Unavailable("torchao converts nn.Linear with sides that are multiples of 16, and the model has none")
    config = float8.Float8LinearConfig.from_recipe_name(recipe)
    float8.convert_to_float8_training(module, config=config, module_filter_fn=fits)


@contextmanager
def full_float32() -> Iterator[None]:
    """Float32 products and convolutions without TF32; afterwards as before."""
    products: Any = torch.backends.cuda.matmul
    convolutions: Any = torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = False
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


def attempt(work: Callable[[], Result]) -> tuple[Result | None, str, bool]:
    """(what ``work`` returned, why it could not run, whether that was to be expected).

    To be expected are a missing package, a model that offers nothing to do, and memory that runs out; of every other
    error the traceback is printed, and the benchmark goes on.
    """
    try:
        return work(), "", True
    except (Unavailable, ImportError) as error:
        reason, expected = str(error), True
    except Exception as error:
        expected = _ran_out_of_memory(error)
        reason = OUT_OF_MEMORY if expected else _root(error)
        if not expected:
            traceback.print_exc()
    # Only here, behind the handlers, the error is gone, and with it the frames that hold the model.
    free()
    return None, reason, expected


def _root(error: BaseException) -> str:
    """One line of the error that compilers wrapped; dynamo keeps it as ``inner_exception``."""
    while inner := getattr(error, "inner_exception", None) or error.__cause__:
        error = inner
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is the lack of memory: compilers wrap it, and drivers only say so."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower():
            return True
        error = error.__cause__ or error.__context__
    return False
