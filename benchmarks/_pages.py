"""Pages of the documentation that are made from results: their options, their tables, writing and checking them."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from _common import ROOT

__all__ = ["parser", "publish", "slug", "table"]


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options of a script that makes a page."""
    made = argparse.ArgumentParser(description=(description or "").split("\n\n")[0])
    made.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the JSON")
    made.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the page")
    made.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is out of date")
    return made


def publish(make: Callable[[str], dict[str, str]], pictures: str, script: str, options: argparse.Namespace) -> int:
    """Write the files of a page, or check them; returns the exit code.

    Args:
        make: the folder of the JSON, relative to that of the page → the files by their paths relative to the latter.
        pictures: folder of the pictures, likewise; those that are not made any more are removed.
        script: the name to be given in messages.
    """
    made = make(Path(os.path.relpath(options.results, options.docs)).as_posix())
    present = {path.relative_to(options.docs).as_posix() for path in (options.docs / pictures).glob("*.svg")}
    stale = sorted(present - set(made))
    if options.check:
        paths = {name: options.docs / name for name in made}
        wrong = [n for n, path in paths.items() if not path.exists() or path.read_text(encoding="utf-8") != made[n]]
        for name in [*wrong, *stale]:
            print(f"{name} is not what the results give: run python benchmarks/{script}", file=sys.stderr)
        return 1 if wrong or stale else 0
    for name, text in made.items():
        (options.docs / name).parent.mkdir(parents=True, exist_ok=True)
        (options.docs / name).write_text(text, encoding="utf-8")
    for name in stale:
        (options.docs / name).unlink()
    print(f"{len(made)} files written")
    return 0


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = False) -> str:
    """A table in Markdown; ``numbers``: all columns but the first are set to the right."""
    rule = ["---", *("---:" if numbers else "---" for _ in head[1:])]
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, rule, *rows))


def slug(text: str) -> str:
    """A file name's part."""
    return re.sub(r"\W+", "-", text.lower()).strip("-")
