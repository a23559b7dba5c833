"""What every benchmark does: read the arguments, take turns, take medians, print a table, write JSON.

Import it before anything else of the checkout: it puts the checkout on the path.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

__all__ = [
    "ROOT",
    "arguments",
    "forget",
    "free",
    "interleaved",
    "median",
    "ratio",
    "record",
    "synchronize",
    "warm_up",
    "write",
]


def arguments(
    description: str | None, argv: Sequence[str] | None, *extra: tuple[str, dict[str, Any]]
) -> argparse.Namespace:
    """The options that all benchmarks share, and ``extra`` ones as (flag, keywords of ``add_argument``)."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n\n")[0])
    devices = ("cpu", "cuda")
    parser.add_argument("--device", choices=devices, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds: does the script work?")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the JSON")
    for flag, keywords in extra:
        parser.add_argument(flag, **keywords)
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is available")
    return options


def warm_up(device: str) -> None:
    """Load the compiler's own parts and the device's libraries, so that no contender pays for them."""
    x = torch.ones(64, 64, device=device, requires_grad=True)
    torch.compile(lambda x: (x @ x).sin().sum())(x).backward()
    if device == "cuda":
        half = torch.ones(256, 256, device=device, dtype=torch.bfloat16)
        (half @ half).sum().item()


def synchronize(device: str) -> None:
    """Wait until everything that was launched is done."""
    if device == "cuda":
        torch.cuda.synchronize()


def interleaved(
    steps: Mapping[str, Callable[[], object]], device: str, rounds: int, block: int = 1
) -> dict[str, list[float]]:
    """Seconds of each step: in every round each contender runs ``block`` steps, between two synchronizations.

    Args:
        steps: contender -> one step. Warm, that is already compiled.
        block: more than 1 hides the launches of one step behind the kernels of another, as a training loop does.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            synchronize(device)
            begin = time.perf_counter()
            for _ in range(block):
                step()
            synchronize(device)
            times[name].append((time.perf_counter() - begin) / block)
    return times


def median(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each contender."""
    return {name: statistics.median(values) for name, values in times.items()}


def ratio(values: Mapping[str, float], base: str) -> dict[str, float]:
    """Each value divided by that of ``base``."""
    return {name: value / values[base] for name, value in values.items()}


def forget() -> None:
    """Drop compiled code and what the device's allocator holds."""
    torch._dynamo.reset()
    free()


def free() -> None:
    """Give memory that nobody refers to back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def record(
    name: str, options: argparse.Namespace, rows: Sequence[Mapping[str, Any]], figures: Mapping[str, Any] | None = None
) -> Path:
    """Print ``rows`` as a table and write them, with everything that a reader needs to repeat them, as JSON."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    table = Table(*(rows[0] if rows else ()), title=f"{name} on {device_name(options.device)}")
    for row in rows:
        table.add_row(*map(_text, row.values()))
    console.print(table)
    path = write(name, options, rows, figures)
    console.print(f"written to {os.path.relpath(path)}", highlight=False, soft_wrap=True)
    return path


def write(
    name: str, options: argparse.Namespace, rows: Sequence[Mapping[str, Any]], figures: Mapping[str, Any] | None = None
) -> Path:
    """The file of ``record``; a later call of the same day replaces it."""
    now = datetime.datetime.now()
    today = now.date().isoformat()
    data = {
        "benchmark": name,
        "date": today,
        "time": now.astimezone(datetime.UTC).isoformat(timespec="seconds"),
        "quick": options.quick,
        "device": device_name(options.device),
        "host": {
            "cpu": _cpu_name(),
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
        },
        "versions": _versions(),
        "commit": _commit(),
        "command": _command(),
        "rows": list(rows),
        **(figures or {}),
    }
    slug = "cpu" if options.device == "cpu" else re.sub(r"\W+", "-", device_name("cuda").lower()).strip("-")
    options.out.mkdir(parents=True, exist_ok=True)
    path: Path = options.out / f"{name}-{slug}-{today}{'-quick' if options.quick else ''}.json"
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    return path


def _command() -> str:
    """How to repeat it: as it was called, but for the folder of the results."""
    arguments = list(sys.argv[1:])
    if "--out" in arguments:
        at = arguments.index("--out")
        del arguments[at : at + 2]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments])


def device_name(device: str) -> str:
    """For a person."""
    return torch.cuda.get_device_name() if device == "cuda" else _cpu_name()


def _text(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1e-2 or abs(value) >= 1e5 else f"{value:.3f}"
    return str(value)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda or "none"}
    for package in ("triton", "timm", "transformers", "torchao", "hadamard-fx"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("HADAMARD_FX_COMMIT", "unknown")
    return done.stdout.strip()
