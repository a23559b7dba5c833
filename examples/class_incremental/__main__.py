"""Learning tasks one after the other, exact and with HDQT's 4-bit operands and saturating accumulators.

By default the digits, five tasks of two classes; after each the accuracy over all classes so far is measured, and
average accuracy is the mean over the tasks. The methods and datasets are those of HDQT (arXiv 2310.03675). Predictions
and what is distilled go through the same products as the training: a model that learned with saturating sums is used
with them.

    python -m examples.class_incremental [--seeds 5] [--methods LwF,iCaRL] [--products exact,hdqt:8,luq] [--epochs N]
        [--dataset NAME --data FOLDER] [--scenario class|task|domain] [--model NAME] [--device cpu|cuda] [--quick]
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from hadamard_fx.errors import HadamardError

from .contenders import DEFAULT, contender, label
from .datasets import DATASETS
from .experiment import Experiment, compare
from .methods import METHODS
from .models import MODELS
from .scenarios import SCENARIOS

__all__ = ["main"]

METHODS_OF_HDQT = "LwF,iCaRL,BiC,DER,MEMO"


def show(rows: list[dict[str, Any]], title: str, console: Console) -> None:
    """The means; the single accuracies are in the file."""
    columns = [name for name in rows[0] if name != "accuracies"]
    table = Table(*columns, title=title)
    for row in rows:
        values = [row[name] for name in columns]
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else value for value in values))
    console.print(table)


def name_of(options: argparse.Namespace) -> str:
    """Of the file: what differs from the default run is in it, so that one run does not overwrite another."""
    usual = {"dataset": "digits", "scenario": "class", "methods": METHODS_OF_HDQT, "products": DEFAULT, "model": None}
    chosen = [str(getattr(options, name)) for name in usual if getattr(options, name) != usual[name]]
    return "-".join(["class_incremental", *(re.sub(r"[^\w.]+", "_", text) for text in chosen)])


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="class_incremental", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--methods", default=METHODS_OF_HDQT, help=f"some of {', '.join(METHODS)}")
    parser.add_argument(
        "--products", default=DEFAULT, help="exact, luq, hdqt:A for sums of A bits; the first is the base"
    )
    parser.add_argument("--dataset", choices=DATASETS, default="digits")
    parser.add_argument("--data", type=Path, help="folder that the dataset was unpacked to; digits need none")
    parser.add_argument("--scenario", choices=SCENARIOS, default="class", help="what is asked of an example")
    parser.add_argument("--model", choices=MODELS, help="by default the dataset's")
    parser.add_argument("--epochs", type=int, help="passes over the examples of a task; by default the dataset's")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs: does it work?")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the JSON")
    options = parser.parse_args(argv)
    if unknown := [method for method in options.methods.split(",") if method not in METHODS]:
        parser.error(f"unknown methods {', '.join(unknown)}; known: {', '.join(METHODS)}")
    if options.seeds < 1 or (options.epochs is not None and options.epochs < 1):
        parser.error("--seeds and --epochs must be at least 1")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is available")
    return options


def main(argv: list[str] | None = None) -> int:
    """Run the comparison; returns the exit code."""
    options = arguments(argv)
    seeds, epochs = (1, 2) if options.quick else (options.seeds, options.epochs)
    console, begin = Console(), time.perf_counter()
    if not console.is_terminal:
        console = Console(width=150)
    try:
        contenders = {label(name): contender(name) for name in options.products.split(",")}
        experiment = Experiment.of(
            options.dataset, options.data, options.scenario, options.model, epochs, options.device
        )
        rows = compare(experiment, options.methods.split(","), contenders, seeds, console)
    except HadamardError as error:
        print(f"class_incremental: {error}", file=sys.stderr)
        return 1
    show(rows, f"{options.scenario}-incremental {options.dataset}, {experiment.model}", console)
    today = datetime.date.today().isoformat()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{name_of(options)}-{options.device}-{today}{'-quick' if options.quick else ''}.json"
    facts = {
        "benchmark": "class_incremental",
        "date": today,
        "quick": options.quick,
        **experiment.facts(),
        "seeds": seeds,
        "seconds": time.perf_counter() - begin,
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
