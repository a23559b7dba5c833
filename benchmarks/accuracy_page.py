"""Write docs/accuracy.md and its pictures from the newest results of the trainings from scratch.

    python benchmarks/accuracy_page.py [--results FOLDER] [--docs FOLDER] [--check]

Nothing of the page is written by hand. With ``--check`` nothing is written: the exit code is 1 if the page or one of
its pictures is not what the results give. Pictures in docs/accuracy that no result has any more are removed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from _curves import curves
from _pages import parser, publish, slug, table

PICTURES = "accuracy"
"""Folder of the pictures, in that of the page."""

EXPERIMENTS = {
    "char_gpt_loss": "Character GPT on the standard library's source",
    "digits_accuracy": "Vision transformer on handwritten digits",
}
"""What is shown, in this order."""

INTRODUCTION = """\
# Training from scratch

The same model under several contenders, which start from the same weights and see the same batches, seed by seed.
Figures are tested with exact products whatever a contender trains with; the training loss, of the last tenth of the
steps, is the contender's own. A contender is within noise of `exact` where the means differ by at most two standard
errors, √(s₁²/n + s₂²/n), of their difference. The paired error is that of the differences seed by seed: where the
difference is several of those, it is real, though smaller than what another seed changes.

`python benchmarks/accuracy_page.py` makes this page from the newest file of each experiment and device in
[benchmarks/results](RESULTS); edit none of it by hand.

| contender | what it is |
| --- | --- |
| `exact` | no product is changed; what the others are compared with |
| `hot` | HOT with random signs of the tokens, which make its rank cut unbiased |
| `hot+grad_weight.signs=none`, `hot-repo` | HOT as the paper has it, and as the published code does it |
| `hot+forward=hadamard8` | a profile with options, written as `hadamard-fx explain -o` takes them |
| `hot+` | the first and the last layer stay exact |
| `luq` | LUQ: 4 bits in all three products, gradients on a logarithmic grid; emulated |
| `low_pass` | LBP-WHT: both gradients from the low frequencies of an image's tokens; emulated |
| `int8`, `int4` | plain integers in all three products, no transform |
"""


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The newest result of every experiment and device; quick runs, and files of an older form, do not count."""
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for name in EXPERIMENTS:
        for path in sorted(folder.glob(f"{name}-*.json")):
            data = json.loads(path.read_text(encoding="utf-8"))
            key = (name, data["device"])
            if not data["quick"] and "curves" in data and newest.get(key, {"time": ""})["time"] <= data["time"]:
                newest[key] = {**data, "file": path.name}
    places = list(EXPERIMENTS)
    return sorted(newest.values(), key=lambda data: (places.index(data["benchmark"]), data["device"]))


def make(found: list[dict[str, Any]], results: str) -> dict[str, str]:
    """The files of the page, by their paths relative to its folder."""
    parts = [INTRODUCTION.replace("RESULTS", results)]
    files: dict[str, str] = {}
    if not found:
        parts.append("\nThere are no results yet: run `python benchmarks/char_gpt_loss.py`.\n")
    for data in found:
        title = f"{EXPERIMENTS[data['benchmark']]}, {data['device']}"
        parts.append(f"\n## {title}\n\n{section(data)}")
        name = f"{PICTURES}/{slug(title)}.svg"
        files[name] = curves(data, title)
        parts.append(
            f"\n![{data['figure']} in the course of the training, {title}]({name})\n\n{origin(data, results)}\n"
        )
    return {"accuracy.md": "".join(parts), **files}


def section(data: dict[str, Any]) -> str:
    """The table of one result, and who is missing."""
    head = ("contender", data["figure"], "difference", "standard error", "paired error", "verdict", "training loss")
    rows = [
        (
            f"`{row['contender']}`",
            f"{row['mean']:.4g} ± {row['standard deviation']:.2g}",
            f"{row['difference']:+.2g}" if row["verdict"] else "",
            f"{row['standard error']:.2g}" if row["verdict"] else "",
            f"{row['paired standard error']:.2g}" if row["verdict"] else "",
            row["verdict"],
            f"{row['training loss']:.3g}",
        )
        for row in data["rows"]
    ]
    missing = "".join(f"- `{name}` did not run: {why}.\n" for name, why in data["did not run"].items())
    return table(head, rows) + (f"\n{missing}" if missing else "")


def origin(data: dict[str, Any], results: str) -> str:
    """What a reader needs to repeat a run."""
    sizes = ", ".join(f"{key} {value}" for key, value in data["sizes"].items() if value is not None)
    versions = ", ".join(f"{name} {v}" for name, v in data["versions"].items() if v not in ("none", "not installed"))
    return (
        f"{data['seeds']} seeds; {sizes}. {data['date']}; {versions}; commit {data['commit']}; `{data['command']}`; "
        f"[{data['file']}]({results}/{data['file']})"
    )


def main(argv: list[str] | None = None) -> int:
    """Write or check the page; returns the exit code."""
    options = parser(__doc__).parse_args(argv)
    found = read_results(options.results)
    return publish(lambda results: make(found, results), PICTURES, "accuracy_page.py", options)


if __name__ == "__main__":
    sys.exit(main())
