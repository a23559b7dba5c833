"""The next character of a text, by orthogonal nets of few bits and the usual baselines: bits per character (BPC).

The text is the source of the running Python's standard library, which is always there; its modules differ between
versions, so a result names the digest of what was read. ``--penn FOLDER`` reads the Penn Treebank from local files
instead, the paper's task (QORNN, arXiv 2402.04012: 150 steps, a net starting anew in each window).

    python examples/character_model.py [--characters N] [--steps N] [--contenders bjorck,bjorck:5,lstm] [--quick]
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this is a script of the checkout, not of the package

from examples.mnist import DataError
from examples.recurrent_contenders import Contender, Rates, recurrent_bytes
from examples.recurrent_training import bars, fit, options_of, record, threads
from examples.text_data import Corpus, penn_treebank, standard_library, windows
from hadamard_fx.orthogonal.recurrent import OrthogonalRNN
from hadamard_fx.orthogonal.tracking import orthogonality

DEFAULT = "lstm,gru,fastgrnn,hadamard,bjorck,bjorck:8,bjorck:6,bjorck:5,bjorck:4,projunn:6"
RATES = Rates(orthogonal=3e-3, gated=3e-3, divisor=2.0, fast=3e-3, fast_gated=3e-3, hadamard=3e-3)
TESTED = 256
"""Windows of the test part that are asked."""


@dataclass(frozen=True)
class Sizes:
    """What is trained, and how."""

    characters: int = 2_000_000
    window: int = 150
    hidden: int = 256
    batch: int = 64
    steps: int = 1500
    activation: str = "modrelu"
    range: str = "minmax"
    per_channel: bool = False
    data: str = "stdlib"
    rates: Rates = RATES


def batches(symbols: Tensor, alphabet: int, sizes: Sizes, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows drawn anywhere in the text: one-hot inputs [batch, window, alphabet] and the characters behind each."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.arange(sizes.window + 1)
    for _ in range(sizes.steps):
        start = torch.randint(len(symbols) - sizes.window, (sizes.batch, 1), generator=generator)
        drawn = symbols[start + offsets]
        yield F.one_hot(drawn[:, :-1], alphabet).float(), drawn[:, 1:]


def entropy(output: Tensor, target: Tensor) -> Tensor:
    """Mean over all characters, in nats."""
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


@torch.no_grad()
def bits_per_character(model: nn.Module, symbols: Tensor, alphabet: int, window: int) -> float:
    """On the first windows of a text."""
    x, target = (part[:TESTED] for part in windows(symbols, window))
    return entropy(model(F.one_hot(x, alphabet).float()), target).item() / math.log(2)


def frequencies(corpus: Corpus) -> float:
    """BPC of who knows how frequent each character is in the training text, and nothing else."""
    counts = torch.bincount(corpus.train, minlength=len(corpus.alphabet)).double() + 1
    return float(-(counts / counts.sum()).log2()[corpus.test].mean())


def train(
    contenders: list[Contender], sizes: Sizes, corpus: Corpus, console: Console, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Train every contender on the same windows; a row for each."""
    rows, alphabet = [], len(corpus.alphabet)
    with bars(console) as progress:
        for contender in contenders:
            torch.manual_seed(0)
            choices = {"activation": sizes.activation, "range": sizes.range}
            choices |= {"per_channel": sizes.per_channel, "every_step": True}
            model = contender.model(alphabet, sizes.hidden, alphabet, **choices).to(device)
            task = progress.add_task(contender.name, total=sizes.steps)

            def seen(loss: float, task: Any = task, name: str = contender.name) -> None:
                progress.update(task, advance=1, description=f"{name}: {loss / math.log(2):.2f} BPC")

            steppers = contender.optimizers(model, sizes.rates)
            data = batches(corpus.train, alphabet, sizes, 1)
            seconds = fit(model, steppers, data, sizes.steps, entropy, seen)
            row = {"contender": contender.name, "seconds": seconds}
            row["recurrent bytes"] = recurrent_bytes(contender, alphabet, sizes.hidden)
            for part in ("valid", "test"):
                row[f"{part}, BPC"] = bits_per_character(model.cpu(), getattr(corpus, part), alphabet, sizes.window)
            if isinstance(model, OrthogonalRNN):
                row["gap"] = orthogonality(model.recurrent).gap
            rows.append({**row, "digest of the text": corpus.digest})
    return rows


def table(rows: list[dict[str, Any]], sizes: Sizes, corpus: Corpus) -> Table:
    """For a person."""
    title = f"characters, {sizes.data}, windows of {sizes.window}, {sizes.hidden} units, {sizes.steps} steps"
    made = Table(title=title, caption=f"by frequency alone: {frequencies(corpus):.2f} BPC; text {corpus.digest}")
    for name in ("net", "valid", "test", "‖WWᵀ−I‖", "W, U", "training"):
        made.add_column(name, justify="left" if name == "net" else "right", no_wrap=True)
    for row in rows:
        made.add_row(
            row["contender"],
            f"{row['valid, BPC']:.3f}",
            f"{row['test, BPC']:.3f}",
            f"{row['gap']:.2g}" if "gap" in row else "",
            f"{row['recurrent bytes'] / 1024:.1f} KiB",
            f"{row['seconds']:.1f} s",
        )
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison; returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--penn", metavar="FOLDER", help="the Penn Treebank, from local files")
    defaults = {name: getattr(Sizes, name) for name in ("characters", "window", "hidden", "steps")}
    options, contenders = options_of(parser, DEFAULT, given, Sizes.activation, **defaults)
    chosen = {name: getattr(options, name) for name in (*defaults, "activation", "range", "per_channel")}
    sizes = Sizes(**chosen, data="penn" if options.penn else Sizes.data)
    if options.quick:
        sizes = replace(sizes, characters=60_000, window=20, hidden=16, steps=5)
    console = Console() if sys.stdout.isatty() else Console(width=150)
    try:
        corpus = penn_treebank(options.penn) if options.penn else standard_library(sizes.characters)
        with threads(options.threads):
            rows = train(contenders, sizes, corpus, console, options.device)
            path = record("character_model", sizes, rows, given, options.quick, options.out, options.device)
    except DataError as error:
        parser.error(str(error))
    console.print(table(rows, sizes, corpus))
    console.print(f"written to {os.path.relpath(path)}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
