"""What the recurrent examples share: their options, one training loop, and the JSON of a run."""

from __future__ import annotations

import argparse
import datetime
import json
import math
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from examples.recurrent_contenders import Contender, parse

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

WARM_UP = 0.05
"""Share of the steps in which the learning rate rises; then it falls like a cosine."""


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
    parser.add_argument("--device", default="cpu", help="where it is trained (default %(default)s)")
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
    device = next(model.parameters()).device
    for x, target in batches:
        loss = loss_of(model(x.to(device)), target.to(device))
        for stepper in steppers:
            stepper.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for one in (*steppers, *schedules):
            one.step()
        seen(loss.item())
    model.eval()
    return time.perf_counter() - begin


def record(
    name: str, sizes: Any, rows: list[dict[str, Any]], arguments: list[str], quick: bool, out: Path, device: str = "cpu"
) -> Path:
    """Write the rows of a run, with what is needed to repeat it; returns the file."""
    on_cpu = torch.device(device).type == "cpu"
    hardware = f"{torch.get_num_threads()} CPU threads" if on_cpu else torch.cuda.get_device_name(device)
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
        "device": hardware,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "commit": commit,
        "command": " ".join(["python", f"examples/{name}.py", *arguments]),
        "sizes": asdict(sizes),
        "rows": rows,
    }
    out.mkdir(parents=True, exist_ok=True)
    usual = vars(type(sizes)())
    changed = "" if quick else "".join(f"-{key}-{value}" for key, value in vars(sizes).items() if value != usual[key])
    slug = "cpu" if on_cpu else re.sub(r"\W+", "-", hardware.lower()).strip("-")
    path = out / f"{name}{changed}-{slug}-{today}{'-quick' if quick else ''}.json"  # other sizes, another file
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
