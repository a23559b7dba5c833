"""A method learns the tasks of a dataset one after the other, for several seeds and ways to compute products."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import hadamard_fx

from .data import Split
from .datasets import DATASETS, Dataset
from .learner import Compiler
from .methods import METHODS
from .models import MODELS, ModelError
from .scenarios import SCENARIOS, Scenario
from .settings import Settings

__all__ = ["Experiment", "bars", "compare", "compiler"]


def compiler(options: Mapping[str, Any]) -> Compiler:
    """``torch.compile`` with this project's backend."""

    def compiled(function: Any, dynamic: bool) -> Any:
        return torch.compile(function, backend=hadamard_fx.backend.hadamard, options=dict(options), dynamic=dynamic)

    return compiled


@dataclass(frozen=True)
class Experiment:
    """All that runs of a comparison have in common.

    Raises:
        DatasetError: the files are missing or damaged. ScenarioError: the scenario does not fit the classes.
        ModelError: no model has that name.
    """

    dataset: Dataset
    train: Split
    test: Split
    scenario: Scenario
    model: str
    settings: Settings
    device: str

    @classmethod
    def of(
        cls,
        dataset: str = "digits",
        root: Path | None = None,
        scenario: str = "class",
        model: str | None = None,
        epochs: int | None = None,
        device: str = "cpu",
    ) -> Experiment:
        """With what the dataset prefers, where nothing else is said."""
        source = DATASETS[dataset]
        named = model or source.model
        if named not in MODELS:
            raise ModelError(f"there is no model {named!r}; known: {', '.join(MODELS)}; choose one with --model")
        settings = source.settings if epochs is None else Settings(**{**vars(source.settings), "epochs": epochs})
        asked = SCENARIOS[scenario](source.classes, source.each)
        train, test = source.load(root)
        return cls(source, train.to(device), test.to(device), asked, named, settings, device)

    @property
    def epochs(self) -> int:
        """Of a whole run."""
        return self.settings.epochs * len(self.scenario.tasks())

    def run(self, method: str, compile: Compiler, seed: int, step: Callable[[], None] = lambda: None) -> list[float]:
        """Accuracy in per cent over what was learned so far, after each task.

        Args:
            step: called after every epoch.
        """
        torch._dynamo.reset()
        torch._dynamo.config.recompile_limit = 64
        torch._dynamo.config.fail_on_recompile_limit_hit = True  # behind the limit a model would run exact, silently
        torch.manual_seed(seed)
        model = MODELS[self.model](self.dataset.shape, self.scenario.outputs).to(self.device)
        learner = METHODS[method](model, self.scenario, compile, self.settings, seed, self.dataset.augment)
        tasks, accuracies = self.scenario.tasks(), []
        for number, task in enumerate(tasks, 1):
            learner.learn(self.train.of(task.classes), task, step)
            accuracies.append(learner.accuracy(self.test, tasks[:number]))
        return accuracies

    def facts(self) -> dict[str, Any]:
        """For the record."""
        names = {"dataset": self.dataset.name, "scenario": self.scenario.name, "model": self.model}
        return {**names, "settings": vars(self.settings)}


def bars(console: Console) -> Progress:
    """A progress bar whose total is epochs."""
    text = TextColumn("{task.description}", markup=False)
    return Progress(text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console)


def compare(
    experiment: Experiment,
    methods: Sequence[str],
    contenders: Mapping[str, Mapping[str, Any]],
    seeds: int,
    console: Console,
    after: Callable[[], dict[str, Any]] = dict,
) -> list[dict[str, Any]]:
    """A row for every method and contender, with means and deviations over the seeds; the first contender is the base.

    Args:
        contenders: options of the backend by name.
        after: called after the runs of a row; what it returns stands in the row.
    """
    rows: list[dict[str, Any]] = []
    with bars(console) as progress:
        total = len(methods) * len(contenders) * seeds * experiment.epochs
        bar = progress.add_task("", total=total)
        for method in methods:
            base: float | None = None
            for name, options in contenders.items():
                runs = []
                for seed in range(seeds):
                    progress.update(bar, description=f"{method}, {name}, seed {seed}")
                    runs.append(experiment.run(method, compiler(options), seed, lambda: progress.advance(bar)))
                rows.append({**_row(method, name, runs, base), **after(), "accuracies": runs})
                base = rows[-1]["average accuracy, %"] if base is None else base
    return rows


def _row(method: str, name: str, runs: list[list[float]], base: float | None) -> dict[str, Any]:
    averages = [statistics.mean(run) for run in runs]
    mean = statistics.mean(averages)
    return {
        "method": method,
        "products": name,
        "average accuracy, %": mean,
        "standard deviation": statistics.stdev(averages) if len(runs) > 1 else 0.0,
        "after the last task, %": statistics.mean(run[-1] for run in runs),
        "points from the first": 0.0 if base is None else mean - base,
    }
