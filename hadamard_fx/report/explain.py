"""``explain(model, loss=…)(*inputs)``: what the backend would do, without generating code."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.fx as fx

from hadamard_fx import compat
from hadamard_fx.backend import compile_graph
from hadamard_fx.errors import HadamardError, OptionError
from hadamard_fx.policy import Policy

from . import history
from .measure import interpret_labelled, measured_of
from .measure import measure as measure_products
from .page import notebook, page
from .report import Report
from .save import save_as


@dataclass(frozen=True)
class Explanation:
    """The reports of every graph of one model."""

    reports: tuple[Report, ...]

    def __str__(self) -> str:
        return self.text()

    def text(self, **settings: Any) -> str:
        """All reports as text; ``settings`` as in ``Report.text``."""
        return "\n\n".join(report.text(**settings) for report in self.reports)

    def to_json(self) -> str:
        """A JSON list with one report per graph."""
        return json.dumps([report.as_dict() for report in self.reports], indent=2)

    def to_html(self) -> str:
        """One self-contained page with all reports; see ``Report.to_html``."""
        return page(self.reports)

    def save(self, path: str | Path) -> Path:
        """Write the page (``.html``) or the JSON list (``.json``), as ``Report.save``."""
        return save_as(path, html=self.to_html, json=self.to_json)

    def _repr_html_(self) -> str:
        return "".join(map(notebook, self.reports))


def explain(
    model: Callable[..., Any],
    *,
    loss: Callable[..., torch.Tensor] | None = None,
    options: Mapping[str, Any] | None = None,
    graphs: bool = False,
    measure: bool = False,
    mode: str | None = None,
    **compile_arguments: Any,
) -> Callable[..., Explanation]:
    """Trace a model as ``torch.compile(model, backend="hadamard")`` would, and report every decision.

    The forward runs once (more often with ``measure``), by interpretation, and does what a forward does to buffers and
    random numbers. No code is generated, no gradient is accumulated.

    Args:
        model: a module or function.
        loss: applied to the model's result inside the graph, so that its backward is seen too.
        options: the backend's options.
        graphs: keep the joint graph before and after in the reports, for the pictures of ``to_html``.
        measure: time every product, over a few steps with their backward; the reports then hold measured seconds
            beside the predicted ones. The forward runs as often.
        mode: of Inductor, as ``torch.compile`` takes it; it generates no code here, but an unknown one is an error.
        compile_arguments: passed on to ``torch.compile``, ``dynamic=True`` for instance.

    Returns:
        a function of the model's inputs that returns the explanation.

    Raises:
        OverrideError: (from the returned function) an override matches no layer of any graph.
        OptionError: a backend is given: there is one.
    """
    if "backend" in compile_arguments:
        raise OptionError("explain traces for the backend hadamard; leave out backend=")
    policy = Policy.resolve(options)

    def step(*inputs: Any, **named: Any) -> Any:
        result = model(*inputs, **named)
        return result if loss is None else loss(result)

    def run(*inputs: Any, **named: Any) -> Explanation:
        numbers = itertools.count()

        def backend(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
            number = next(numbers)  # a backend of this call alone, so that nothing is taken from an earlier one
            inner = functools.partial(interpret_labelled, graph=number) if measure else interpret
            return compile_graph(gm, example_inputs, policy, mode=mode, inner_compile=inner, graphs=graphs)

        seen = len(history.reports())
        times: dict[tuple[int, str], float] = {}
        with compat.any_number_of_compilations(), _own_errors():
            compiled = torch.compile(step, backend=backend, **compile_arguments)
            if measure:
                times = measure_products(lambda: compiled(*inputs, **named))
            else:
                compiled(*inputs, **named)
        found = history.reports()[seen:]
        error = policy.unmatched_error({d.gemm.layer for report in found for d in report.plan.decisions})
        if error is not None:
            raise error
        if measure:
            timed = (measured_of(times, number, report.plan) for number, report in enumerate(found))
            found = tuple(replace(report, measured=one) for report, one in zip(found, timed, strict=True))
        return Explanation(found)

    return run


@contextmanager
def _own_errors() -> Iterator[None]:
    """This project's errors as they were raised, and not wrapped by dynamo."""
    try:
        yield
    except compat.BackendCompilerFailed as failure:
        if isinstance(failure.inner_exception, HadamardError):
            raise failure.inner_exception from None
        raise


def interpret(gm: fx.GraphModule, example_inputs: Sequence[Any], **_: Any) -> Callable[..., Any]:
    """A stand-in for Inductor's code generation: run the graph node by node."""

    def boxed(arguments: list[Any]) -> Any:
        inputs = list(arguments)
        arguments.clear()
        return gm(*inputs)

    boxed._boxed_call = True  # type: ignore[attr-defined]
    return boxed
