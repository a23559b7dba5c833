"""The copy task: remember K symbols over T0 blank steps, then say them.

An input is K of 8 symbols, T0 − 1 blanks, a marker and K blanks; the target is T0 + K blanks and the K symbols. Who
remembers nothing reaches a cross-entropy of K ln 8/(T0 + 2K), the naive baseline, and one in eight symbols. The paper
(QORNN, arXiv 2402.04012) has K = 10, T0 = 1000 and 256 units; the defaults here are for minutes on a CPU.

    python examples/copy_task.py [--delay T0] [--symbols K] [--steps N] [--contenders bjorck,bjorck:4,lstm] [--quick]
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

from examples.recurrent_contenders import Contender, Rates, recurrent_bytes
from examples.recurrent_training import bars, fit, options_of, record, threads
from hadamard_fx.orthogonal.recurrent import OrthogonalRNN
from hadamard_fx.orthogonal.tracking import orthogonality

DEFAULT = "lstm,gru,hadamard,bjorck,bjorck:8,bjorck:6,bjorck:5,bjorck:4,bjorck:3,projunn,projunn:6"
DATA = 8
BLANK, MARKER = DATA, DATA + 1
INPUTS, OUTPUTS = DATA + 2, DATA + 1
TEST_SEED = 2**31


RATES = Rates(orthogonal=3e-3, gated=3e-3, divisor=2.0)


@dataclass(frozen=True)
class Sizes:
    """What is trained, and how."""

    delay: int = 50
    symbols: int = 10
    hidden: int = 128
    batch: int = 32
    steps: int = 1500
    activation: str = "modrelu"
    range: str = "minmax"
    per_channel: bool = False
    rates: Rates = RATES

    @property
    def baseline(self) -> float:
        """Cross-entropy, in nats a step, of a net that remembers nothing."""
        return naive_baseline(self.delay, self.symbols)


def naive_baseline(delay: int, symbols: int) -> float:
    """K ln 8/(T0 + 2K)."""
    return symbols * math.log(DATA) / (delay + 2 * symbols)


def problems(count: int, delay: int, symbols: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """x [count, T0 + 2K, 10], one-hot float32, and targets [count, T0 + 2K], int64."""
    data = torch.randint(DATA, (count, symbols), generator=generator)
    codes = torch.full((count, delay + 2 * symbols), BLANK)
    codes[:, :symbols] = data
    codes[:, symbols + delay - 1] = MARKER
    target = torch.full_like(codes, BLANK)
    target[:, -symbols:] = data
    return F.one_hot(codes, INPUTS).float(), target


def batches(sizes: Sizes, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """New problems for every step."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(sizes.steps):
        yield problems(sizes.batch, sizes.delay, sizes.symbols, generator)


def entropy(output: Tensor, target: Tensor) -> Tensor:
    """Mean over the batch and the steps, in nats."""
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


@torch.no_grad()
def measure(model: nn.Module, sizes: Sizes) -> dict[str, float]:
    """Cross-entropy and share of remembered symbols (per cent) of 512 problems that were not trained on."""
    x, target = problems(512, sizes.delay, sizes.symbols, torch.Generator().manual_seed(TEST_SEED))
    output = model(x)
    right = output[:, -sizes.symbols :].argmax(2) == target[:, -sizes.symbols :]
    found = {"cross-entropy": entropy(output, target).item(), "symbols": 100 * right.float().mean().item()}
    if isinstance(model, OrthogonalRNN):
        state = orthogonality(model.recurrent)
        found |= {"gap": state.gap, "smallest": state.smallest, "largest": state.largest}
    return found


def train(contenders: list[Contender], sizes: Sizes, console: Console, device: str = "cpu") -> list[dict[str, Any]]:
    """Train every contender on the same problems; a row for each."""
    rows = []
    with bars(console) as progress:
        for contender in contenders:
            torch.manual_seed(0)
            choices = {"activation": sizes.activation, "range": sizes.range}
            choices |= {"per_channel": sizes.per_channel, "every_step": True}
            model = contender.model(INPUTS, sizes.hidden, OUTPUTS, **choices).to(device)
            task = progress.add_task(contender.name, total=sizes.steps)

            def seen(loss: float, task: Any = task, name: str = contender.name) -> None:
                share = f"{loss / sizes.baseline:.2f} of the baseline"
                progress.update(task, advance=1, description=f"{name}: {share}")

            steppers = contender.optimizers(model, sizes.rates)
            seconds = fit(model, steppers, batches(sizes, 1), sizes.steps, entropy, seen)
            bytes_ = recurrent_bytes(contender, INPUTS, sizes.hidden)
            found = measure(model.cpu(), sizes)
            rows.append({"contender": contender.name, "recurrent bytes": bytes_, "seconds": seconds, **found})
    return rows


def table(rows: list[dict[str, Any]], sizes: Sizes) -> Table:
    """For a person."""
    title = f"copy task, K = {sizes.symbols}, T0 = {sizes.delay}, {sizes.hidden} units, {sizes.steps} steps"
    caption = f"naive baseline {sizes.baseline:.4f} nats a step, {100 / DATA} % of the symbols"
    made = Table(title=title, caption=caption)
    for name in ("net", "cross-entropy", "of baseline", "symbols", "‖WWᵀ−I‖", "σ of W", "W, U", "training"):
        made.add_column(name, justify="left" if name == "net" else "right", no_wrap=True)
    for row in rows:
        made.add_row(
            row["contender"],
            f"{row['cross-entropy']:.4f}",
            f"{row['cross-entropy'] / sizes.baseline:.2f}",
            f"{row['symbols']:.1f} %",
            f"{row['gap']:.2g}" if "gap" in row else "",
            f"{row['smallest']:.2f}..{row['largest']:.2f}" if "gap" in row else "",
            f"{row['recurrent bytes'] / 1024:.1f} KiB",
            f"{row['seconds']:.1f} s",
        )
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run the comparison; returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    defaults = {name: getattr(Sizes, name) for name in ("delay", "symbols", "hidden", "steps")}
    options, contenders = options_of(parser, DEFAULT, given, Sizes.activation, **defaults)
    chosen = {name: getattr(options, name) for name in (*defaults, "activation", "range", "per_channel")}
    sizes = Sizes(**chosen)
    if options.quick:
        sizes = replace(sizes, delay=5, symbols=2, hidden=16, steps=5)
    console = Console() if sys.stdout.isatty() else Console(width=150)
    with threads(options.threads):
        rows = train(contenders, sizes, console, options.device)
        path = record("copy_task", sizes, rows, given, options.quick, options.out, options.device)
    console.print(table(rows, sizes))
    console.print(f"written to {os.path.relpath(path)}", highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
