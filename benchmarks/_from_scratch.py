"""Train a model from scratch under every contender for several seeds, and judge whether the results differ.

The judgement is a comparison of means: a contender is within seed noise of the first one where their difference is at
most two standard errors of it, √(s₁²/n + s₂²/n), which is stricter than Welch's test at 5 % for five seeds (2.3).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from _common import arguments, record, write
from _contenders import Unavailable, attempt, compile_with, options_of
from rich.console import Console

import examples.luq
from examples.side_by_side import Contender, Task, train
from hadamard_fx.low_pass import LowPass

__all__ = ["JUDGEMENT", "Experiment", "Outcome", "judged", "run", "settings"]

JUDGEMENT = "within noise: the means differ by at most 2 standard errors, √(s₁²/n + s₂²/n), of their difference"

ROLES = ("forward", "grad_input", "grad_weight")


@dataclass(frozen=True)
class Experiment:
    """What is trained, and what it is judged by.

    Attributes:
        name: of the result's file.
        figure: what a test gives, with its unit; ``higher``: more of it is better.
        contenders: by default, separated by commas; the first is what the others are compared with.
        task: the task for some options, and its sizes for the record.
        outer: overrides of a contender that ends with ``+``: its first and last layers stay exact.
        grid: ``LowPass`` for the tokens of one image; None, with ``why_no_grid``, where they make up none.
    """

    name: str
    figure: str
    higher: bool
    contenders: str
    task: Callable[[Namespace], tuple[Task, Mapping[str, Any]]]
    outer: Mapping[str, str]
    grid: Callable[[Namespace], LowPass] | None = None
    why_no_grid: str = ""


@dataclass(frozen=True)
class Outcome:
    """What came of one contender: the test figures of each seed at ``steps``, and more."""

    name: str
    steps: list[int]
    curves: list[list[float]]
    training_losses: list[float]
    step_seconds: float
    saved_bytes: int

    @property
    def scores(self) -> list[float]:
        return [curve[-1] for curve in self.curves]


def settings(name: str, experiment: Experiment, options: Namespace) -> dict[str, Any]:
    """The options of hadamard that a contender stands for.

    Raises:
        Unavailable: the contender does not exist for this model; the message says why.
    """
    base, outer = name.removesuffix("+"), name.endswith("+")
    found: dict[str, Any] = {"overrides": dict(experiment.outer)} if outer else {}
    if base == "luq":
        return {"profile": "exact", **dict.fromkeys(ROLES, examples.luq.Luq()), **found}
    if base == "low_pass":
        if experiment.grid is None:
            raise Unavailable(experiment.why_no_grid)
        return {"profile": "exact", **dict.fromkeys(ROLES[1:], experiment.grid(options)), **found}
    return {**options_of(base), **found}


def measure(name: str, experiment: Experiment, options: Namespace) -> Outcome:
    """Train one contender for all seeds, in this process."""
    chosen = settings(name, experiment, options)
    task, _ = experiment.task(options)
    contender = Contender(name, lambda model: compile_with(chosen["profile"], model, **chosen))
    train([contender], task, options.seeds, options.device, Console(stderr=True))
    last = max(task.steps // 10, 1)
    return Outcome(
        name,
        [done for done, _ in contender.curves[0]],
        [[figure for _, figure in curve] for curve in contender.curves],
        [statistics.mean(losses[-last:]) for losses in contender.losses],
        contender.step_seconds,
        contender.saved,
    )


def judged(outcomes: Sequence[Outcome], higher: bool) -> list[dict[str, Any]]:
    """Mean, deviation and verdict of each, compared with the first."""
    base = outcomes[0].scores
    rows = []
    for outcome in outcomes:
        scores = outcome.scores
        difference = statistics.mean(scores) - statistics.mean(base)
        error = ((_variance(scores) / len(scores)) + (_variance(base) / len(base))) ** 0.5
        rows.append(
            {
                "contender": outcome.name,
                "mean": statistics.mean(scores),
                "standard deviation": _variance(scores) ** 0.5,
                "difference": difference,
                "standard error": error,
                "verdict": "" if outcome is outcomes[0] else _verdict(difference, error, len(scores), higher),
                "training loss": statistics.mean(outcome.training_losses),
                "saved, MiB": outcome.saved_bytes / 2**20,
                "step, ms": outcome.step_seconds * 1e3,
            }
        )
    return rows


def _variance(values: Sequence[float]) -> float:
    return statistics.variance(values) if len(values) > 1 else 0.0


def _verdict(difference: float, error: float, seeds: int, higher: bool) -> str:
    if difference != difference:
        return "diverged"
    if seeds < 2:
        return "one seed: no verdict"
    if abs(difference) <= 2 * error:
        return "within noise"
    return "better" if (difference > 0) is higher else "worse"


def run(experiment: Experiment, description: str | None, argv: Sequence[str] | None) -> int:
    """The whole benchmark; returns the exit code: 1 where a contender failed that should have run."""
    options = arguments(
        description,
        argv,
        ("--seeds", {"type": int, "default": 0, "help": "trainings of each contender (default 5, quick: 2)"}),
        ("--steps", {"type": int, "default": 0, "help": "of one training (default: as the sizes say)"}),
        ("--contenders", {"default": experiment.contenders, "help": "the first is what the others are compared with"}),
        ("--jobs", {"type": int, "default": 0, "help": "processes at a time (default: one on a CPU, else all)"}),
        ("--child", {"default": "", "help": "measure this contender and print JSON"}),
    )
    options.seeds = options.seeds or (2 if options.quick else 5)
    if options.child:
        print(json.dumps(asdict(measure(options.child, experiment, options))))
        return 0
    names = options.contenders.split(",")
    options.jobs = options.jobs or (1 if options.device == "cpu" else len(names))
    found: dict[str, Outcome] = {}
    reasons: dict[str, str] = {}
    fine = True
    for name, (outcome, reason, expected) in _all(names, experiment, options, argv):
        fine &= expected
        if outcome is None:
            reasons[name] = reason
            print(f"{name}: {reason}", file=sys.stderr, flush=True)
        else:
            found[name] = outcome
        if names[0] in found:  # a run that is cut off leaves what it has
            write(experiment.name, options, *_report(experiment, options, names, found, reasons))
    if names[0] not in found:
        print(f"{names[0]} did not run, there is nothing to compare with", file=sys.stderr)
        return 1
    record(experiment.name, options, *_report(experiment, options, names, found, reasons))
    return 0 if fine else 1


def _all(
    names: Sequence[str], experiment: Experiment, options: Namespace, argv: Sequence[str] | None
) -> Iterator[tuple[str, tuple[Outcome | None, str, bool]]]:
    """Every contender with what ``attempt`` says of it, as they finish."""
    arguments_of_child = list(sys.argv[1:] if argv is None else argv)

    def measured(name: str) -> Outcome:
        settings(name, experiment, options)  # fails here, with its reason, where there is no such contender
        if options.jobs == 1:
            return measure(name, experiment, options)
        return _in_process(name, arguments_of_child)

    with ThreadPoolExecutor(options.jobs) as pool:
        waiting = {pool.submit(attempt, partial(measured, name)): name for name in names}
        for done in as_completed(waiting):
            yield waiting[done], done.result()


def _report(
    experiment: Experiment,
    options: Namespace,
    names: Sequence[str],
    found: Mapping[str, Outcome],
    reasons: Mapping[str, str],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and figures for the record."""
    outcomes = [found[name] for name in names if name in found]
    task, sizes = experiment.task(options)
    figures = {
        "figure": experiment.figure,
        "higher is better": experiment.higher,
        "judgement": JUDGEMENT,
        "sizes": {**sizes, "steps": task.steps},
        "seeds": options.seeds,
        "processes at a time": options.jobs,
        "did not run": dict(reasons),
        "steps": outcomes[0].steps,
        "curves": {outcome.name: outcome.curves for outcome in outcomes},
        "training losses": {outcome.name: outcome.training_losses for outcome in outcomes},
    }
    return judged(outcomes, experiment.higher), figures


def _in_process(name: str, arguments_of_child: Sequence[str]) -> Outcome:
    """Measure one contender in a process of its own."""
    command = [sys.executable, sys.argv[0], *arguments_of_child, "--child", name]
    few = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "4"}  # of each process, and there are many
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=few)
    if done.returncode:
        raise RuntimeError(f"the process of {name} ended with {done.returncode}; its messages are above")
    return Outcome(**json.loads(done.stdout.splitlines()[-1]))
