"""Handwritten digits, read one pixel at a time, by orthogonal nets of few bits, and by LSTM, GRU, FastRNN and FastGRNN.

The images are scikit-learn's 8×8 digits (1797 of them), 64 steps of one pixel each; the label is asked after the last.
All nets have the same hidden size, see the same batches, and are trained one after the other on one thread. Where W and
U are quantised, the states are rounded after the training too, and the recurrence is run with integers alone; where
they are not, W and U are rounded after the training, by themselves or by GPTQ or AdaRound.

    python examples/sequential_digits.py [--contenders bjorck,bjorck:4,lstm] [--epochs N] [--seeds N] [--quick]

With ``--mnist FOLDER`` the 28×28 digits of the four MNIST files are read instead, 784 steps each (sMNIST), with
``--permuted`` in a random order (pMNIST).
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this is a script of the checkout, not of the package

from examples.mnist import DataError, mnist
from examples.recurrent_contenders import Contender, Rates, recurrent_bytes
from examples.recurrent_training import bars, fit, options_of, record, threads
from hadamard_fx.orthogonal.activations import quantize_activations
from hadamard_fx.orthogonal.recurrent import OrthogonalRNN
from hadamard_fx.orthogonal.tracking import orthogonality
from hadamard_fx.orthogonal.weights import METHODS, quantize_weights

DEFAULT = (
    "lstm,gru,fastrnn,fastgrnn,hadamard,hadamard:8,hadamard:4,bjorck,bjorck:8,bjorck:6,bjorck:5,bjorck:4,bjorck:3,"
    "projunn,projunn:8,projunn:6,projunn:5,projunn:4,projunn:3"
)
STATE_BITS = (12, 10, 8, 6)
WEIGHT_BITS = (6, 5, 4)
CHOICES = ("activation", "range", "per_channel")
Data = tuple[Tensor, Tensor, Tensor, Tensor]


RATES = Rates(orthogonal=6e-3, gated=1.5e-2, divisor=2.0)
"""The best of 3e-3, 6e-3 and 1.5e-2 for LSTM and GRU, of 3e-3 to 3e-2 for FastRNN, FastGRNN and HadamRNN."""


@dataclass(frozen=True)
class Sizes:
    """What is trained, and how."""

    hidden: int = 64
    batch: int = 64
    epochs: int = 40
    seeds: int = 3
    activation: str = "relu"
    range: str = "minmax"
    per_channel: bool = False
    data: str = "digits"
    rates: Rates = RATES


def digits() -> Data:
    """Training sequences [1437, 64, 1] of pixels in 0..1 and labels, test sequences [360, 64, 1] and labels."""
    data = load_digits()
    pixels = torch.tensor(data.images, dtype=torch.float32).reshape(-1, 64, 1) / 16
    labels = torch.tensor(data.target)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1437], order[1437:]
    return pixels[train], labels[train], pixels[test], labels[test]


def batches(x: Tensor, y: Tensor, seed: int, sizes: Sizes) -> Iterator[tuple[Tensor, Tensor]]:
    """Full batches only, in an order that the seed decides."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(sizes.epochs):
        for index in torch.randperm(len(x), generator=generator)[: len(x) // sizes.batch * sizes.batch].split(
            sizes.batch
        ):
            yield x[index], y[index]


def percent(output: Tensor, labels: Tensor) -> float:
    return 100 * (output.argmax(1) == labels).float().mean().item()


@torch.no_grad()
def measure(model: nn.Module, train: Tensor, test: Tensor, labels: Tensor) -> dict[str, float]:
    """Test accuracies, and the distance of W from orthogonality."""
    found = {"accuracy": percent(model(test), labels)}
    if isinstance(model, OrthogonalRNN):
        state = orthogonality(model.recurrent)
        found |= {"gap": state.gap, "smallest": state.smallest, "largest": state.largest}
        if model.config.bits is not None:
            for bits in STATE_BITS:  # pixels are multiples of 1/16: four binary places hold them
                net = quantize_activations(model, train, bits, input_exponent=4)
                found[f"accuracy, {bits}-bit states"] = percent(net(test), labels)
        elif model.config.training != "hadamard":
            for bits, method in itertools.product(WEIGHT_BITS, METHODS):
                found[f"{method}, {bits} bits"] = percent(quantize_weights(model, train, bits, method)(test), labels)
    return found


def train(
    contenders: list[Contender], sizes: Sizes, data: Data, console: Console, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Train every contender for every seed; a row of means for each, with the single values of the seeds."""
    x, y, test_x, test_y = data
    steps = len(x) // sizes.batch * sizes.epochs
    choices = {name: getattr(sizes, name) for name in CHOICES}
    rows = []
    with bars(console) as progress:
        whole = progress.add_task("all", total=len(contenders) * sizes.seeds)
        for contender in contenders:
            runs = []
            for seed in range(sizes.seeds):
                torch.manual_seed(seed)
                model = contender.model(1, sizes.hidden, 10, **choices).to(device)
                task = progress.add_task(f"{contender.name}, seed {seed}", total=steps)

                def seen(loss: float, task: Any = task) -> None:
                    progress.update(task, advance=1)

                steppers = contender.optimizers(model, sizes.rates)
                seconds = fit(model, steppers, batches(x, y, seed, sizes), steps, F.cross_entropy, seen)
                runs.append({"seconds": seconds, **measure(model.cpu(), x[:2000], test_x, test_y)})
                progress.update(task, visible=False)
                progress.update(whole, advance=1)
            means = {name: statistics.mean(run[name] for run in runs) for name in runs[0]}
            bytes_ = recurrent_bytes(contender, 1, sizes.hidden)
            rows.append({"contender": contender.name, "recurrent bytes": bytes_, **means, "runs": runs})
    return rows


def table(rows: list[dict[str, Any]], sizes: Sizes) -> Table:
    """For a person; the caption says what one test image is worth."""
    title = f"sequential digits, {sizes.hidden} units, {sizes.epochs} epochs, {sizes.seeds} seed(s)"
    made = Table(title=title, caption="accuracies in per cent; one test image is 0.28 points")
    for name in ("net", "test", *(f"{bits}-bit h" for bits in STATE_BITS), "‖WWᵀ−I‖", "σ of W", "W, U", "training"):
        made.add_column(name, justify="left" if name == "net" else "right", no_wrap=True)
    for row in rows:
        states = [row.get(f"accuracy, {bits}-bit states") for bits in STATE_BITS]
        made.add_row(
            row["contender"],
            f"{row['accuracy']:.1f}",
            *("" if value is None else f"{value:.1f}" for value in states),
            f"{row['gap']:.2g}" if "gap" in row else "",
            f"{row['smallest']:.2f}..{row['largest']:.2f}" if "gap" in row else "",
            f"{row['recurrent bytes'] / 1024:.1f} KiB",
            f"{row['seconds']:.1f} s",
        )
    return made


def rounded_weights(rows: list[dict[str, Any]]) -> Table:
    """Accuracies with W and U rounded after the training; no rows where no net was one in floating point."""
    made = Table(title="weights rounded after the training")
    for name in ("net", *(f"{method}, {bits} bits" for bits, method in itertools.product(WEIGHT_BITS, METHODS))):
        made.add_column(name, justify="left" if name == "net" else "right")
    for row in rows:
        found = [f"{row[column.header]:.1f}" for column in made.columns[1:] if column.header in row]
        if found:
            made.add_row(row["contender"], *found)
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison; returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--mnist", metavar="FOLDER", help="28×28 digits from the four idx files in a folder: sMNIST")
    parser.add_argument("--permuted", action="store_true", help="their pixels in one random order: pMNIST")
    defaults = {name: getattr(Sizes, name) for name in ("hidden", "epochs", "seeds")}
    options, contenders = options_of(parser, DEFAULT, given, Sizes.activation, **defaults)
    chosen = {name: getattr(options, name) for name in (*defaults, *CHOICES)}
    sizes = Sizes(**chosen, data=("pmnist" if options.permuted else "smnist") if options.mnist else "digits")
    if options.quick:
        sizes = replace(sizes, epochs=1, seeds=1, hidden=16)
    console = Console() if sys.stdout.isatty() else Console(width=150)
    try:
        data = mnist(options.mnist, options.permuted) if options.mnist else digits()
    except DataError as error:
        parser.error(str(error))
    with threads(options.threads):
        rows = train(contenders, sizes, data, console, options.device)
        path = record("sequential_digits", sizes, rows, given, options.quick, options.out, options.device)
    for made in (table(rows, sizes), rounded_weights(rows)):
        if made.rows:
            console.print(made)
    console.print(f"written to {os.path.relpath(path)}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
