"""What the recurrent examples share: the contenders, one training loop, and the JSON of a run."""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from hadamard_fx.orthogonal.recurrent import ORNNConfig, OrthogonalRNN, optimizers

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

WARM_UP = 0.05
"""Share of the steps in which the learning rate rises; then it falls like a cosine."""


class Gated(nn.Module):
    """LSTM or GRU of one layer with a linear output, [batch, T, i] → [batch, o] or [batch, T, o]."""

    def __init__(self, kind: str, inputs: int, hidden: int, outputs: int, every_step: bool = False) -> None:
        super().__init__()
        self.cell = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](inputs, hidden, batch_first=True)
        self.output = nn.Linear(hidden, outputs)
        self.every_step = every_step

    def forward(self, x: Tensor) -> Tensor:
        states = self.cell(x)[0]
        made: Tensor = self.output(states if self.every_step else states[:, -1])
        return made


@dataclass(frozen=True)
class Rates:
    """Learning rates at their peak.

    Attributes:
        orthogonal: Adam's, for orthogonal nets.
        gated: Adam's, for LSTM and GRU.
        divisor: of the recurrent rate with projUNN; 32 in the paper, which trains for many more steps.
        variant: of projUNN, D or T.
    """

    orthogonal: float
    gated: float
    divisor: float
    variant: str = "D"


@dataclass(frozen=True)
class Contender:
    """One net of a comparison.

    Attributes:
        kind: ``"lstm"``, ``"gru"``, or the training of an ``OrthogonalRNN``, ``"bjorck"`` or ``"projunn"``.
        bits: of W and U; None for floating point.
    """

    kind: str
    bits: int | None = None

    @property
    def gated(self) -> bool:
        return self.kind in ("lstm", "gru")

    @property
    def name(self) -> str:
        if self.gated:
            return self.kind.upper()
        way = {"bjorck": "Björck", "projunn": "projUNN"}[self.kind]
        return f"ORNN, {way}" if self.bits is None else f"QORNN, {way}, {self.bits} bits"

    def model(self, inputs: int, hidden: int, outputs: int, **choices: Any) -> Gated | OrthogonalRNN:
        """The net; ``choices`` are further fields of ``ORNNConfig``."""
        if self.gated:
            return Gated(self.kind, inputs, hidden, outputs, choices.get("every_step", False))
        return OrthogonalRNN(ORNNConfig(inputs, hidden, outputs, self.bits, self.kind, **choices))

    def optimizers(self, model: Gated | OrthogonalRNN, rates: Rates) -> list[torch.optim.Optimizer]:
        if isinstance(model, OrthogonalRNN):
            return optimizers(model, rates.orthogonal, variant=rates.variant, divisor=rates.divisor)
        return [torch.optim.Adam(model.parameters(), lr=rates.gated)]


def parse(names: str) -> list[Contender]:
    """``lstm,gru,bjorck,bjorck:4,projunn:8``: kinds, with bits behind a colon."""
    made = []
    for name in names.split(","):
        kind, _, bits = name.strip().partition(":")
        if kind not in ("lstm", "gru", "bjorck", "projunn") or (bits and not bits.isdigit()):
            raise ValueError(
                f"contender {name!r}: write lstm, gru, bjorck, projunn, or the latter two with bits, bjorck:4"
            )
        made.append(Contender(kind, int(bits) if bits else None))
    return made


def options_of(
    parser: argparse.ArgumentParser, contenders: str, arguments: list[str], activation: str, **defaults: int
) -> tuple[argparse.Namespace, list[Contender]]:
    """Parse ``arguments``: the options that both examples share beside the parser's own, and the contenders.

    Args:
        contenders: the default of ``--contenders``.
        activation: the default of ``--activation``.
        defaults: whole numbers of at least 1, by name.
    """
    parser.add_argument("--contenders", default=contenders, help="kinds, bits behind a colon (default %(default)s)")
    for name, value in {**defaults, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value, help="default %(default)s")
    parser.add_argument("--activation", default=activation, choices=("relu", "modrelu"))
    parser.add_argument("--range", default="minmax", choices=("minmax", "mse", "lsq", "pact"))
    parser.add_argument("--per-channel", action="store_true", help="a range for each row of W")
    parser.add_argument("--quick", action="store_true", help="small nets and few steps: does the script work?")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON")
    options = parser.parse_args(arguments)
    small = [name for name in (*defaults, "threads") if getattr(options, name) < 1]
    if small:
        parser.error(f"--{small[0]} must be at least 1")
    try:
        return options, parse(options.contenders)
    except ValueError as error:
        parser.error(str(error))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """That number of threads for what is inside; one is fastest for nets this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def bars(console: Any) -> Progress:
    """The progress bars of the examples."""
    text = TextColumn("{task.description}", markup=False)
    return Progress(SpinnerColumn(), text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console)


def fit(
    model: nn.Module,
    steppers: list[torch.optim.Optimizer],
    batches: Iterable[tuple[Tensor, Tensor]],
    steps: int,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    seen: Callable[[float], None],
) -> float:
    """Train; returns the seconds.

    Args:
        batches: of (x, target), ``steps`` of them.
        loss_of: (output, target) → a scalar.
        seen: called after each step with the loss.
    """

    def share(step: int) -> float:
        warm = max(WARM_UP * steps, 1.0)
        return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0))))

    schedules = [torch.optim.lr_scheduler.LambdaLR(stepper, share) for stepper in steppers]
    model.train()
    begin = time.perf_counter()
    for x, target in batches:
        loss = loss_of(model(x), target)
        for stepper in steppers:
            stepper.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for one in (*steppers, *schedules):
            one.step()
        seen(loss.item())
    model.eval()
    return time.perf_counter() - begin


def recurrent_bytes(contender: Contender, inputs: int, hidden: int) -> float:
    """Bytes of the weights that every step reads: W and U, four and three of each in LSTM and GRU, with biases."""
    if contender.gated:
        gates = {"lstm": 4, "gru": 3}[contender.kind]
        return 4.0 * gates * (hidden * (hidden + inputs) + 2 * hidden)
    return (contender.bits or 32) / 8 * hidden * (hidden + inputs)


def record(name: str, sizes: Any, rows: list[dict[str, Any]], arguments: list[str], quick: bool, out: Path) -> Path:
    """Write the rows of a run, with what is needed to repeat it; returns the file."""
    today = datetime.date.today().isoformat()
    try:
        asked = ["git", "describe", "--always", "--dirty"]
        commit = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    data = {
        "benchmark": name,
        "date": today,
        "quick": quick,
        "device": f"{torch.get_num_threads()} CPU threads",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "commit": commit,
        "command": " ".join(["python", f"examples/{name}.py", *arguments]),
        "sizes": asdict(sizes),
        "rows": rows,
    }
    out.mkdir(parents=True, exist_ok=True)
    usual = vars(type(sizes)())
    changed = "" if quick else "".join(f"-{key}-{value}" for key, value in vars(sizes).items() if value != usual[key])
    path = out / f"{name}{changed}-cpu-{today}{'-quick' if quick else ''}.json"  # other sizes, another file
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
