"""Class-incremental learning of the digits, exact and with HDQT's 4-bit operands and saturating accumulators.

Five tasks of two classes; after each the accuracy over all classes so far is measured. Average accuracy is the mean
over the tasks. The methods are those of HDQT (arXiv 2310.03675). Predictions and what is distilled go through the same
products as the training: a model that learned with saturating sums is used with them.

    python -m examples.class_incremental [--seeds 5] [--methods LwF,iCaRL,BiC] [--epochs N] [--quick]
        [--compare sums|rounding|tiles] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

import hadamard_fx

from .contenders import EXPERIMENTS
from .data import digits, tasks
from .learner import Settings
from .methods import METHODS
from .models import ThreeLayers

__all__ = ["main", "train"]


def compiler(options: dict[str, Any]) -> Callable[..., Callable[[Tensor], Tensor]]:
    def compiled(function: Callable[[Tensor], Tensor], dynamic: bool) -> Callable[[Tensor], Tensor]:
        return torch.compile(function, backend=hadamard_fx.backend.hadamard, options=options, dynamic=dynamic)

    return compiled


def train(
    method: str, options: dict[str, Any], settings: Settings, seed: int, step: Callable[[], None] = lambda: None
) -> list[float]:
    """Accuracy in per cent over all classes so far, after each task."""
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # behind the limit a model would run exact, silently
    torch.manual_seed(seed)
    train_split, test_split = digits()
    learner = METHODS[method](ThreeLayers(64, 128, 10), compiler(options), settings, seed)
    accuracies = []
    for classes in tasks(10, 2):
        learner.learn(train_split.of(classes), classes, step)
        seen = test_split.of(range(classes.stop))
        with torch.no_grad():
            accuracies.append(100 * float((learner.predict(seen.x) == seen.y).float().mean()))
    return accuracies


def row(method: str, name: str, runs: list[list[float]], base: float | None) -> dict[str, Any]:
    """Mean and standard deviation over the seeds."""
    averages, last = [statistics.mean(run) for run in runs], [run[-1] for run in runs]
    mean = statistics.mean(averages)
    return {
        "method": method,
        "products": name,
        "average accuracy, %": mean,
        "standard deviation": statistics.stdev(averages) if len(runs) > 1 else 0.0,
        "after the last task, %": statistics.mean(last),
        "points from exact": 0.0 if base is None else mean - base,
        "accuracies": runs,
    }


def show(rows: list[dict[str, Any]], console: Console) -> None:
    table = Table(*list(rows[0])[:-1], title="class-incremental digits, 5 tasks of 2 classes, three layers")
    for entry in rows:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else value for value in list(entry.values())[:-1]))
    console.print(table)


def main(argv: list[str] | None = None) -> int:
    """Run the comparison; returns the exit code."""
    parser = argparse.ArgumentParser(prog="class_incremental", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", default=",".join(METHODS), help=f"some of {', '.join(METHODS)}")
    parser.add_argument("--compare", choices=EXPERIMENTS, default="sums", help="what the contenders differ in")
    parser.add_argument("--epochs", type=int, default=Settings.epochs, help="passes over the examples of a task")
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs: does it work?")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the JSON")
    options = parser.parse_args(argv)
    methods = options.methods.split(",")
    if unknown := [method for method in methods if method not in METHODS]:
        parser.error(f"unknown methods {', '.join(unknown)}; known: {', '.join(METHODS)}")
    if options.seeds < 1 or options.epochs < 1:
        parser.error("--seeds and --epochs must be at least 1")
    contenders = EXPERIMENTS[options.compare]
    seeds, epochs = (1, 2) if options.quick else (options.seeds, options.epochs)
    settings, console, begin = Settings(epochs=epochs), Console(), time.perf_counter()
    rows: list[dict[str, Any]] = []
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=len(methods) * len(contenders) * seeds * 5 * epochs)
        for method in methods:
            base: float | None = None
            for name, chosen in contenders.items():
                runs = []
                for seed in range(seeds):
                    progress.update(bar, description=f"{method}, {name}, seed {seed}")
                    runs.append(train(method, chosen, settings, seed, lambda: progress.advance(bar)))
                rows.append(row(method, name, runs, base))
                base = rows[-1]["average accuracy, %"] if base is None else base
    show(rows, console)
    today = datetime.date.today().isoformat()
    options.out.mkdir(parents=True, exist_ok=True)
    kind = "" if options.compare == "sums" else f"_{options.compare}"
    path = options.out / f"class_incremental{kind}-cpu-{today}{'-quick' if options.quick else ''}.json"
    facts = {
        "benchmark": "class_incremental",
        "date": today,
        "quick": options.quick,
        "seeds": seeds,
        "seconds": time.perf_counter() - begin,
        "settings": vars(settings),
        "options": contenders,
        "versions": {"torch": torch.__version__, "python": sys.version.split()[0]},
        "threads": torch.get_num_threads(),
        "command": " ".join(["python -m examples.class_incremental", *(sys.argv[1:] if argv is None else argv)]),
        "rows": rows,
    }
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    console.print(f"written to {path}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
