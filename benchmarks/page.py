"""Write docs/benchmarks.md and its pictures from the newest results of ``training_step.py``.

    python benchmarks/page.py [--results FOLDER] [--docs FOLDER] [--check]

Nothing of the page is written by hand. With ``--check`` nothing is written: the exit code is 1 if the page or one of
its pictures is not what the results give. Pictures in docs/benchmarks that no result has any more are removed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby

from _bars import bars
from _contenders import LEGEND
from _models import MODELS
from _pages import parser, publish, slug, table
from _plane import plane
from _results import Run, read_runs
from _svg import family

PICTURES = "benchmarks"
"""Folder of the pictures, in that of the page."""

INTRODUCTION = """\
# Training steps against Inductor

Whole training steps (forward, backward, fused AdamW), every contender in turn in one process, medians. Speeds are
relative to `inductor` in the same run, losses beside wins. Peak memory is what a contender allocates by itself, its
weights and the state of the optimizer included. The first step compiles. In the planes of time and memory, the line is
the Pareto front: no contender beats those on it in one without losing in the other.

`python benchmarks/page.py` makes this page from the newest file of each model and device in
[benchmarks/results](RESULTS); edit none of it by hand.
"""

EMPTY = """
There are no results yet. This makes one, on a CUDA machine:

```
python benchmarks/training_step.py --model vit_b16 --contenders field
```
"""


def make(runs: Sequence[Run], results: str) -> dict[str, str]:
    """The files of the page, by their paths relative to its folder.

    Args:
        results: the folder of the JSON, likewise relative.
    """
    parts = [INTRODUCTION.replace("RESULTS", results)]
    files: dict[str, str] = {}
    if not runs:
        parts.append(EMPTY)
    else:
        parts.append("\n" + table(("contender", "what it is"), LEGEND))
    for device, group in groupby(sorted(runs, key=lambda run: run.device), lambda run: run.device):
        of_device = list(group)
        parts.append(f"\n## {device}\n\n{losses(of_device)}")
        if any(entry.speed is not None for run in of_device for entry in run.entries):
            name = f"{PICTURES}/speed-{slug(device)}.svg"
            files[name] = bars(of_device)
            parts.append(f"\n![Bars: the speed of every contender relative to Inductor, by model]({name})\n")
        for run in of_device:
            parts.append(section(run, results))
            if any(entry.place for entry in run.entries):
                name = f"{PICTURES}/plane-{slug(f'{run.model}-{run.precision}-{device}')}.svg"
                files[name] = plane(run)
                parts.append(f"\n![Step time against peak memory, with the Pareto front, of {run.model}]({name})\n")
    return {"benchmarks.md": "".join(parts), **files}


def section(run: Run, results: str) -> str:
    """Heading, table, reasons and origin of one run."""
    head = ("contender", "step, ms", "speed against Inductor", "peak, GiB", "first step, s")
    rows = [
        (
            f"`{entry.contender}`",
            figure(entry.milliseconds),
            "–" if entry.speed is None else f"{entry.speed:.2f}×",
            "–" if entry.gibibytes is None else f"{entry.gibibytes:.2f}",
            "–" if entry.first_step is None else f"{entry.first_step:.1f}",
        )
        for entry in run.entries
    ]
    reasons = "".join(f"- `{entry.contender}` did not run: {entry.reason}\n" for entry in run.entries if entry.reason)
    described = "" if run.description == run.model else f"{run.description}. "
    return (
        f"\n### {run.model}, {run.precision}\n\n{table(head, rows, numbers=True)}"
        + (f"\n{reasons}" if reasons else "")
        + f"\n{described}{origin(run, results)}\n"
    )


def origin(run: Run, results: str) -> str:
    """What a reader needs to repeat a run."""
    versions = ", ".join(f"{name} {v}" for name, v in run.versions.items() if v not in ("none", "not installed"))
    return (
        f"{run.device}, {run.date}; {versions}; commit {run.commit}; `{run.command}`; "
        f"[{run.file}]({results}/{run.file})"
    )


def losses(runs: Sequence[Run]) -> str:
    """A sentence on the quantised contenders that are slower than Inductor, "" where none was compared."""
    quantised = [
        (run, entry, entry.speed)
        for run in runs
        for entry in run.entries
        if entry.speed is not None and family(entry.contender) in ("ours", "torchao")
    ]
    slower = [f"`{entry.contender}` on {run.model} ({speed:.2f}×)" for run, entry, speed in quantised if speed < 1]
    if not quantised:
        return ""
    return f"Losses: {', '.join(slower)}.\n" if slower else "Losses: none, every quantised contender is faster.\n"


def figure(value: float | None) -> str:
    """Three digits at least, no decimals that mean nothing."""
    return "–" if value is None else f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def main(argv: list[str] | None = None) -> int:
    """Write or check the page; returns the exit code."""
    options = parser(__doc__).parse_args(argv)
    runs = read_runs(options.results, tuple(MODELS))
    return publish(lambda results: make(runs, results), PICTURES, "page.py", options)


if __name__ == "__main__":
    sys.exit(main())
