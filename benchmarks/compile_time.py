"""Compile time of a training step in fresh processes with cold caches, against Inductor.

    python benchmarks/compile_time.py [--models digits,vit_b] [--contenders inductor,hot,auto] [--repeat 3] [--quick]

Each measurement is a process of its own with an empty cache folder. It first compiles something trivial, so that
loading the compiler is not counted; then the compile time is the first training steps less later ones.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch
from _common import arguments, ratio, record, synchronize, warm_up
from _contenders import compile_with
from _models import MODELS


def child(model: str, contender: str, device: str, quick: bool) -> None:
    """Measure once, in this process; prints one JSON line."""
    warm_up(device)
    torch.manual_seed(0)
    load = MODELS[model](0, device, torch.bfloat16 if device == "cuda" else torch.float32, quick)
    compiled = compile_with(contender, load.module)
    times = []
    for _ in range(5):
        synchronize(device)
        begin = time.perf_counter()
        compiled(*load.inputs).backward()
        synchronize(device)
        times.append(time.perf_counter() - begin)
    later = statistics.median(times[2:])
    print(json.dumps({"compile": times[0] + times[1] - 2 * later, "step": later, "description": load.description}))


def measure(model: str, contender: str, options: Any) -> dict[str, Any]:
    """One child process."""
    command = [sys.executable, __file__, "--child", f"{model},{contender}", "--device", options.device]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as caches:
        # The kernels' tuning is remembered apart from Inductor's caches: it has to be cold too.
        cold = {
            "TORCHINDUCTOR_CACHE_DIR": caches,
            "TRITON_CACHE_DIR": f"{caches}/triton",
            "HADAMARD_FX_CACHE_DIR": caches,
        }
        environment = {**os.environ, **cold}
        done = subprocess.run(
            [*command, *(["--quick"] if options.quick else [])],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{model}, {contender}: {result['compile']:.1f} s", file=sys.stderr, flush=True)
    return result


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options = arguments(
        __doc__,
        argv,
        ("--models", {"default": "digits,vit_b", "help": f"of {', '.join(MODELS)}"}),
        ("--contenders", {"default": "inductor,hot,auto"}),
        ("--repeat", {"type": int, "default": 3}),
        ("--child", {"help": "used by the script itself"}),
    )
    if options.child:
        model, contender = options.child.split(",")
        child(model, contender, options.device, options.quick)
        return 0
    rows, results = [], {}
    for model in options.models.split(","):
        contenders = options.contenders.split(",")
        found: dict[str, list[dict[str, Any]]] = {contender: [] for contender in contenders}
        for _ in range(1 if options.quick else options.repeat):
            for contender in contenders:
                found[contender].append(measure(model, contender, options))
        medians = {c: statistics.median(result["compile"] for result in found[c]) for c in contenders}
        share = ratio(medians, contenders[0])
        rows += [
            {
                "model": found[c][0]["description"],
                "contender": c,
                "compile time, s": medians[c],
                f"times {contenders[0]}'s": share[c],
                "forward and backward, s": found[c][-1]["step"],
            }
            for c in contenders
        ]
        results[model] = found
    record("compile_time", options, rows, {"runs": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
