"""Every benchmark that a CUDA machine runs, one after the other, within a time budget.

    python benchmarks/device_suite.py [--budget SECONDS] [--only NAME,NAME] [--skip NAME,NAME] [--field] [--quick]
        [--out FOLDER]

A benchmark that does not fit what is left of the budget is skipped, one that exceeds it is stopped; the summary at the
end says so, and the exit code is 1 if any failed. With ``--field`` the training steps are compared with every
contender, which takes four times as long.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent

SUITE: dict[str, tuple[int, list[str]]] = {
    "verify": (40, ["verify_gradients.py"]),
    "products": (60, ["quantized_mm.py"]),
    "llama": (120, ["training_step.py", "--model", "llama_1b", "--rounds", "8"]),
    "vit": (120, ["training_step.py", "--model", "vit_b16"]),
    "vit-l": (120, ["training_step.py", "--model", "vit_l16"]),
    "llama-4k": (120, ["training_step.py", "--model", "llama_1b_4k", "--rounds", "8"]),
    "gpt2": (120, ["training_step.py", "--model", "gpt2_medium"]),
    "resnet": (120, ["training_step.py", "--model", "resnet50"]),
    "resnet32": (120, ["training_step.py", "--model", "resnet32"]),
    "efficientformer": (150, ["training_step.py", "--model", "efficientformer_l7"]),
    "kernels": (60, ["transform_kernels.py"]),
    "one-read": (60, ["one_read.py"]),
    "compile": (150, ["compile_time.py", "--repeat", "1", "--contenders", "inductor,hot"]),
    "saved": (30, ["saved_bytes.py"]),
    "convolutions": (60, ["convolutions.py"]),
    "digits": (120, ["digits_accuracy.py", "--seeds", "3"]),
    "vit-autocast": (120, ["training_step.py", "--model", "vit_b16", "--precision", "autocast"]),
}
"""Name -> (seconds it usually takes, command); the most telling first."""

OWN_OUTPUT = {"products": ("--out", "quantized_mm-cuda.json"), "kernels": ("--output", "transform_kernels-cuda.json")}
"""Benchmarks that write one file under a flag of their own, and know no ``--device`` and no ``--quick``."""


def command_of(name: str, options: argparse.Namespace) -> list[str]:
    """The command line of one benchmark."""
    script, *flags = SUITE[name][1]
    command = [sys.executable, str(HERE / script), *flags]
    if name in OWN_OUTPUT:
        flag, file = OWN_OUTPUT[name]
        return [*command, flag, str(options.out / file)]
    if options.field and script == "training_step.py":
        command += ["--contenders", "field"]
    return [*command, "--device", "cuda", "--out", str(options.out), *(["--quick"] if options.quick else [])]


def run(name: str, options: argparse.Namespace, left: float) -> str:
    """Run one benchmark; returns a word on how it went."""
    usual = SUITE[name][0] * (4 if options.field and SUITE[name][1][0] == "training_step.py" else 1)
    if left < usual / 4:
        return f"skipped, {left:.0f} s left"
    begin = time.monotonic()
    print(f"== {name}", flush=True)
    checkout = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE.parent), os.getenv("PYTHONPATH")]))}
    try:
        code = subprocess.run(command_of(name, options), env=checkout, timeout=left, check=False).returncode
    except subprocess.TimeoutExpired:
        return f"stopped after {left:.0f} s"
    return f"{'ok' if code == 0 else f'failed with {code}'}, {time.monotonic() - begin:.0f} s"


def main(argv: list[str] | None = None) -> int:
    """Run the suite; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--budget", type=float, default=560, help="seconds for all of it")
    parser.add_argument("--only", default="", help=f"of {', '.join(SUITE)}")
    parser.add_argument("--skip", default="")
    parser.add_argument("--field", action="store_true", help="training steps against every contender")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args(argv)
    chosen = [
        name for name in (options.only.split(",") if options.only else SUITE) if name not in options.skip.split(",")
    ]
    if unknown := [name for name in chosen if name not in SUITE]:
        parser.error(f"unknown benchmark {', '.join(unknown)}; known: {', '.join(SUITE)}")
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + options.budget
    results = {name: run(name, options, end - time.monotonic()) for name in chosen}
    for name, result in results.items():
        print(f"{name:>14}  {result}")
    return 1 if any("failed" in result for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
