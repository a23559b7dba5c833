"""Check and time the quantised product on this CUDA device, beside cuBLAS in the same run.

    python benchmarks/quantized_mm.py --out benchmarks/results/quantized_mm_h200.json [--sweep]

First correctness against exact integer sums (odd shapes, both carriers, groups, every configuration), then a table of
TOP/s (2·M·N·K operations over the median of CUDA-event times, L2 flushed before each launch, random operands).
``--sweep`` times every configuration below instead of the ones the package chooses from.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import triton
from triton.testing import do_bench

from hadamard_fx.kernels import library
from hadamard_fx.kernels import quantized_mm_cuda as launcher

SHAPES = (
    (8192, 8192, 8192), (50432, 768, 3072), (50432, 3072, 768), (50432, 768, 768), (50432, 2304, 768),
    (768, 3072, 25216), (3072, 768, 25216), (768, 768, 25216), (16384, 2048, 8192), (2048, 8192, 8192),
)  # fmt: skip
"""ViT-B/16 at batch 256 (g_x, then g_w at rank 8 of 16), and a Llama of 1B at 8 × 2048 tokens."""

GROUPED = {(768, 3072, 25216), (3072, 768, 25216), (2048, 8192, 8192), (768, 768, 25216)}


def make(kernel: str, m: int, n: int, k: int, stages: int, **flags: Any) -> dict[str, Any]:
    store = {"store": "tma"} if kernel == "tiles" else {}
    return {**launcher._config(kernel, m, n, k, stages, **store), "tma": True, **flags}


SWEEP = (
    make("tiles", 128, 256, 128, 3), make("tiles", 128, 256, 128, 4), make("tiles", 128, 256, 128, 4, store="plain"),
    make("tiles", 128, 256, 128, 4, flatten=True), make("tiles", 128, 256, 256, 2), make("tiles", 256, 128, 128, 4),
    make("tiles", 128, 128, 128, 3, warps=4, per_sm=2), make("tiles", 128, 128, 128, 5),
    make("tiles", 128, 128, 256, 3), make("tiles", 64, 256, 128, 2, warps=4, per_sm=2),
    make("stream", 128, 256, 128, 4), make("stream", 128, 256, 256, 2), make("stream", 256, 128, 128, 4),
    make("stream", 128, 128, 128, 3, warps=4, per_sm=2), make("stream", 128, 128, 128, 5),
)  # fmt: skip
SWEEP_GROUPED = (
    make("tiles", 128, 128, 128, 4), make("tiles", 128, 128, 256, 3), make("tiles", 64, 128, 128, 3, warps=4, per_sm=2),
    make("tiles", 128, 64, 128, 3, warps=4, per_sm=2),
    make("stream", 128, 128, 128, 5), make("stream", 128, 128, 256, 3),
    make("stream", 64, 128, 128, 3, warps=4, per_sm=2), make("stream", 128, 64, 128, 3, warps=4, per_sm=2),
    make("stream", 64, 128, 128, 3, warps=4, per_sm=3),
)  # fmt: skip


def operands(m: int, n: int, k: int, carrier: torch.dtype, group: int = 0, limit: int | None = None) -> list[Any]:
    """Random integers on the device, and scales."""
    limit = limit or (127 if carrier == torch.int8 else 7)
    count = -(-k // group) if group else 1
    a, b = (torch.randint(-limit, limit + 1, (r, k), device="cuda", dtype=torch.int8) for r in (m, n))
    if carrier != torch.int8:
        a, b = a.to(torch.float32).to(carrier), b.to(torch.float32).to(carrier)
    return [a, b, torch.rand(count, m, device="cuda") + 0.5, torch.rand(count, n, device="cuda") + 0.5]


def exact(a: torch.Tensor, b: torch.Tensor, sa: torch.Tensor, sb: torch.Tensor, group: int) -> torch.Tensor:
    """float32 rescale of exact integer sums (float64 products of integers are exact)."""
    step = group or a.shape[1]
    out = torch.zeros(a.shape[0], b.shape[0], device="cuda")
    for g in range(sa.shape[0]):
        s = slice(g * step, (g + 1) * step)
        part = a[:, s].to(torch.float32).double() @ b[:, s].to(torch.float32).double().T
        out = out + part.float() * sa[g][:, None] * sb[g][None, :]
    return out


def launch(config: Any, a: Any, b: Any, sa: Any, sb: Any, group: int, out: torch.Tensor) -> torch.Tensor:
    problem = launcher._problem(a, b, sa, sb, group, out.dtype)
    if config["kernel"] == "tiles" and not launcher._aligned(problem):
        config = {**config, "store": "plain"}
    launcher.run(config, problem, a, b, sa, sb, out)
    return out


def poisoned(m: int, n: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full((m, n), float("nan"), dtype=dtype, device="cuda")


def check_configs(part: int, parts: int) -> list[str]:
    """Every configuration on ragged tiles; returns what is wrong. Ungrouped results must be equal, bit for bit."""
    wrong = []
    lists = [(c, 0) for c in SWEEP] + [(c, 512) for c in SWEEP_GROUPED]
    jobs = [(carrier, *job) for carrier in (torch.int8, torch.float8_e4m3fn) for job in lists]
    for carrier, config, group in jobs[part::parts]:
        for m, n, k in ((304, 528, 2064), (128, 80, 25216), (2064, 2064, 1040)):
            name = f"{label(config)} {m}x{n}x{k} group {group} {carrier}"
            data = operands(m, n, k, carrier, group)
            try:
                out = launch(config, *data, group, poisoned(m, n, torch.bfloat16))
                want = exact(*data, group)
                error = (out.float() - want.bfloat16().float()).abs().max().item()
                if not error <= (2**-7 * want.abs().max().item() if group else 0.0):
                    wrong.append(f"{name}: error {error}")
            except Exception as error:
                wrong.append(f"{name}: {str(error)[:200]}")
    return wrong


def probe_float8() -> list[dict[str, Any]]:
    """Largest error of the FP8 carrier where sums grow: every operand near 7. Tensor cores may keep fewer bits."""
    rows = []
    for k in (128, 256, 512, 1024, 2048, 4096, 8192, 25216, 50432):
        for kind in ("all 7", "6..7", "random ±7"):
            low = {"all 7": 7, "6..7": 6, "random ±7": -7}[kind]
            a, b = (torch.randint(low, 8, (256, k), device="cuda").float() for _ in range(2))
            a[:, -1], b[:, ::3] = 1, b[:, ::3] - 1
            data = (a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn))
            ones = torch.ones(1, 256, device="cuda")
            want = a.double() @ b.double().T
            row: dict[str, Any] = {"k": k, "data": kind, "largest": want.abs().max().item()}
            for name, imprecise in (("default", None), ("promoted every 128", 128)):
                config = make("tiles", 128, 128, 128, 4, imprecise=imprecise)
                out = launch(config, *data, ones, ones, 0, poisoned(256, 256, torch.float32))
                row[name] = (out.double() - want).abs().max().item()
            rows.append(row)
            print(row, flush=True)
    return rows


def rate(call: Any, m: int, n: int, k: int) -> float | None:
    try:
        call()
        milliseconds = do_bench(call, warmup=10, rep=60, return_mode="median")
    except Exception as error:
        print("   failed:", str(error)[:160].replace("\n", " "), flush=True)
        return None
    return round(2 * m * n * k / milliseconds / 1e9, 1)


def peers(m: int, n: int, k: int) -> dict[str, float | None]:
    """cuBLAS in the same run: bf16, int8, fp8."""
    a, b = (torch.randn(r, k, device="cuda", dtype=torch.bfloat16) for r in (m, n))
    ia, ib, *_ = operands(m, n, k, torch.int8)
    fa, fb, *_ = operands(m, n, k, torch.float8_e4m3fn)
    one = torch.ones((), device="cuda")
    return {
        "bf16 mm": rate(lambda: a @ b.T, m, n, k),
        "_int_mm": rate(lambda: torch._int_mm(ia, ib.T), m, n, k),
        "_scaled_mm": rate(
            lambda: torch._scaled_mm(fa, fb.T, one, one, out_dtype=torch.bfloat16, use_fast_accum=True), m, n, k
        ),
    }


def label(config: Any) -> str:
    extra = f"{' flatten' if config.get('flatten') else ''} {config.get('store', '')}"
    tile = f"{config['kernel']} {config['m']}x{config['n']}x{config['k']}"
    return f"{tile} s{config['stages']} w{config['warps']}x{config['per_sm']}{extra}"


def table(sweep: bool) -> list[dict[str, Any]]:
    op = torch.ops.hadamard.quantized_mm
    rows = []
    for m, n, k in SHAPES:
        row: dict[str, Any] = {"m": m, "n": n, "k": k, **peers(m, n, k), "configs": {}}
        for carrier in (torch.int8, torch.float8_e4m3fn):
            name = "int8" if carrier == torch.int8 else "fp8"
            for group in (0, 512) if (m, n, k) in GROUPED and name == "int8" else (0,):
                data = operands(m, n, k, carrier, group)
                tag = f"{name}{' group 512' if group else ''}"
                out = poisoned(m, n, torch.bfloat16)
                if sweep:
                    for config in SWEEP_GROUPED if group else SWEEP:
                        tiles = -(-m // config["m"]) * -(-n // config["n"])
                        if config["kernel"] == "tiles" or tiles <= 600:
                            value = rate(lambda c=config: launch(c, *data, group, out), m, n, k)  # noqa: B023
                            row["configs"][f"{tag} {label(config)}"] = value
                else:
                    row[tag] = rate(lambda: op(*data, group, torch.bfloat16), m, n, k)  # noqa: B023
        print(json.dumps({key: value for key, value in row.items() if key != "configs"}), flush=True)
        for key, value in sorted(row["configs"].items(), key=lambda item: -(item[1] or 0)):
            print(f"    {value!s:>8}  {key}", flush=True)
        rows.append(row)
    return rows


def overhead() -> dict[str, float]:
    """Microseconds of host time per call, the device idle (tiny product)."""
    data = operands(64, 64, 64, torch.int8)
    op = torch.ops.hadamard.quantized_mm
    result = {}
    calls = {"op": lambda: op(*data, 0, torch.bfloat16), "aten._int_mm": lambda: torch._int_mm(data[0], data[1].T)}
    for name, call in calls.items():
        for _ in range(20):
            call()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(200):
            call()
        result[name] = round((time.perf_counter() - start) / 200 * 1e6, 1)
        torch.cuda.synchronize()
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--probe", action="store_true", help="where the FP8 carrier stops being exact")
    parser.add_argument("--check", default="0/1", help="I/N: check only part I of N, and time nothing if N > 1")
    options = parser.parse_args()
    library.load()
    torch.manual_seed(0)
    part, parts = map(int, options.check.split("/"))
    wrong = check_configs(part, parts)
    print("correctness:", "every configuration agrees" if not wrong else "\n  ".join(wrong), flush=True)
    if parts > 1:
        return 1 if wrong else 0
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    result = {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__, "triton": triton.__version__,
        "python": platform.python_version(), "commit": commit, "command": " ".join(sys.argv), "unit": "TOP/s",
        "wrong": wrong, "float8": probe_float8() if options.probe else [], "overhead_us": overhead(),
        "rows": table(options.sweep),
    }  # fmt: skip
    print("host time per call, us:", result["overhead_us"])
    if options.out:
        options.out.write_text(json.dumps(result, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
