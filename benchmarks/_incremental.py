"""What the experiments on class-incremental learning share: their options, the runs, and the record."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from _common import arguments, record
from rich.console import Console

from examples.class_incremental.experiment import Experiment, compare
from examples.class_incremental.methods import METHODS

__all__ = ["numbers", "options_of", "run"]


def options_of(
    description: str | None, argv: Sequence[str] | None, methods: str, *extra: tuple[str, dict[str, Any]]
) -> Any:
    """The options of a benchmark, ``--seeds``, ``--epochs`` and ``--methods`` among them.

    Args:
        methods: the default of ``--methods``.
    """
    given = arguments(
        description,
        argv,
        ("--seeds", {"type": int, "default": 3}),
        ("--epochs", {"type": int, "default": None, "help": "of a task"}),
        ("--methods", {"type": _methods, "default": methods, "help": f"some of {', '.join(METHODS)}"}),
        *extra,
    )
    if given.quick:
        given.seeds, given.epochs, given.methods = 1, 1, given.methods[:1]
    return given


def _methods(text: str) -> list[str]:
    if unknown := [method for method in text.split(",") if method not in METHODS]:
        raise argparse.ArgumentTypeError(f"unknown methods {', '.join(unknown)}; known: {', '.join(METHODS)}")
    return text.split(",")


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between, as ``type`` of an option."""
    return [int(number) for number in text.split(",")]


def run(
    name: str,
    options: Any,
    contenders: Mapping[str, Mapping[str, Any]],
    after: Callable[[], dict[str, Any]] = dict,
) -> None:
    """Learn the digits with every method and contender, show the table and write the JSON.

    Args:
        contenders: options of the backend by name, the first being what the others are compared with.
        after: called after the runs of a row; what it returns stands in the row.
    """
    experiment = Experiment.of(epochs=options.epochs, device=options.device)
    begin = time.perf_counter()
    rows = compare(experiment, options.methods, contenders, options.seeds, Console(stderr=True), after)
    single = [row.pop("accuracies") for row in rows]
    facts = {"seeds": options.seeds, "seconds": time.perf_counter() - begin, **experiment.facts()}
    record(name, options, rows, {**facts, "options": dict(contenders), "accuracies": single})
