"""Check and time the quantised product on this CUDA device, beside cuBLAS in the same run.

    python benchmarks/quantized_mm.py --out benchmarks/results/quantized_mm_h200.json [--sweep]

First correctness against exact integer sums (odd shapes, both carriers, groups, every configuration), then a table of
TOP/s: 2·M·N·K operations over the median of CUDA-graph replays, random operands in rotation, bf16 out.
``--sweep`` times every configuration below instead of the ones the package chooses from.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import itertools
import json
import platform
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import triton

from hadamard_fx.kernels import library
from hadamard_fx.kernels import quantized_mm_configs as configs
from hadamard_fx.kernels import quantized_mm_cuda as launcher
from hadamard_fx.kernels.quantized_mm_configs import Config, config

SHAPES = (
    (8192, 8192, 8192), (50432, 768, 3072), (50432, 3072, 768), (50432, 768, 768), (50432, 2304, 768),
    (768, 3072, 25216), (3072, 768, 25216), (768, 768, 25216), (16384, 2048, 8192), (16384, 8192, 2048),
    (2048, 8192, 8192),
)  # fmt: skip
"""ViT-B/16 at batch 256 (g_x, then g_w at rank 8 of 16), and a Llama of 1B at 8 × 2048 tokens."""

REPLAYS = 12
CARRIERS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
GRAD_WEIGHTS = {(768, 3072, 25216), (3072, 768, 25216), (2048, 8192, 8192), (768, 768, 25216)}
"""Where both operands have scales of their own in every group; elsewhere b has one per column, as a weight has."""

SWEEP: dict[str, tuple[Config, ...]] = {
    "int8": (
        *(*configs.CONFIGS, config("tiles", 128, 256, 128, 4), config("stream", 128, 256, 128, 4)),
        *(*configs.SPECIALISED["whole"], *configs.SPECIALISED["stream"]),
    ),
    "fp8": (
        *({**entry, "promote": min(configs.PROMOTE, entry["k"])} for entry in configs.FLOAT8),
        *(*configs.SPECIALISED["tiles"], *configs.SPECIALISED["stream"]),
        config("tiles", 128, 256, 128, 4, flatten=True),
    ),
    "fp8 group 128": (*configs.GROUPED, *configs.SPECIALISED["tiles"], *configs.SPECIALISED["stream"]),
    "fp8 group 256": (*configs.GROUPED, *configs.SPECIALISED["tiles"], *configs.SPECIALISED["stream"]),
    "int8 group 128": (*configs.GROUPED, *configs.SPECIALISED["tiles"], *configs.SPECIALISED["stream"]),
    "int8 group 256": (*configs.GROUPED, *configs.SPECIALISED["tiles"], *configs.SPECIALISED["stream"]),
}
"""What ``--sweep`` times; the number behind "group" is that of its columns. The last of fp8 without groups does not
promote: fast, and inexact where sums grow above 2^14."""


def group_of(kind: str) -> int:
    """Columns that share scales, 0 for all."""
    return int(kind.split()[-1]) if "group" in kind else 0


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


@functools.cache
def prepared(tile: tuple[tuple[str, Any], ...], posed: configs.Problem) -> launcher.Product:
    return launcher.Product(dict(tile), posed)


def launch(tile: Config, a: Any, b: Any, sa: Any, sb: Any, group: int, out: torch.Tensor) -> torch.Tensor:
    posed = configs.problem(a, b, sa, sb, group, out.dtype)
    k = min(tile["k"], group) if group else tile["k"]
    chosen = {**tile, "k": k, "store": "plain" if posed.store() == "plain" else tile["store"]}
    prepared(tuple(sorted(chosen.items())), posed)(a, b, sa, sb, out, sb)
    return out


def poisoned(m: int, n: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full((m, n), float("nan"), dtype=dtype, device="cuda")


def check_configs(part: int, parts: int) -> list[str]:
    """Every configuration on ragged tiles; returns what is wrong. Ungrouped results must be equal, bit for bit."""
    wrong = []
    jobs = [(kind, tile) for kind, tiles in SWEEP.items() for tile in tiles]
    for kind, tile in jobs[part::parts]:
        carrier, group = CARRIERS[kind[:4].strip()], group_of(kind)
        for m, n, k in ((304, 528, 2064), (128, 80, 25216), (2064, 2064, 1040)):
            data = operands(m, n, k, carrier, group)
            try:
                out = launch(tile, *data, group, poisoned(m, n, torch.bfloat16))
                want = exact(*data, group)
                error = (out.float() - want.bfloat16().float()).abs().max().item()
                if not error <= (2**-7 * want.abs().max().item() if group else 0.0):
                    wrong.append(f"{kind} {label(tile)} {m}x{n}x{k}: error {error}")
            except Exception as error:
                wrong.append(f"{kind} {label(tile)} {m}x{n}x{k}: {str(error)[:200]}")
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
            for name, promote in (("default", None), ("promoted every 128", 128), ("promoted every 256", 256)):
                tile = config("tiles", 128, 128, 256, 2, promote=promote)
                out = launch(tile, *data, ones, ones, 0, poisoned(256, 256, torch.float32))
                row[name] = (out.double() - want).abs().max().item()
            rows.append(row)
            print(row, flush=True)
    return rows


def rate(m: int, n: int, k: int, calls: list[Any]) -> float | None:
    """TOP/s of ``calls``, one per operand set, replayed from a CUDA graph: no host time, operands not in the cache."""
    try:
        for call in calls:
            call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(REPLAYS + 1)]
        for event in events:
            graph.replay()
            event.record()
        events[-1].synchronize()
    except Exception as error:
        print("   failed:", str(error)[:160].replace("\n", " "), flush=True)
        return None
    milliseconds = statistics.median(x.elapsed_time(y) for x, y in itertools.pairwise(events)) / len(calls)
    return round(2 * m * n * k / milliseconds / 1e9, 1)


def copies(m: int, n: int, k: int) -> range:
    """As many operand sets as three times the L2 cache of 60 MB, at most 6."""
    return range(min(6, max(2, 180_000_000 // ((m + n) * k))))


def peers(m: int, n: int, k: int) -> dict[str, float | None]:
    """cuBLAS in the same run: bf16, int8, fp8."""
    one = torch.ones((), device="cuda")
    sets = copies(m, n, k)
    i8, f8 = ([operands(m, n, k, carrier)[:2] for _ in sets] for carrier in CARRIERS.values())
    bf = [(a.bfloat16(), b.bfloat16()) for a, b in i8]
    fast = {"out_dtype": torch.bfloat16, "use_fast_accum": True}
    return {
        "bf16 mm": rate(m, n, k, [lambda x=x: x[0] @ x[1].T for x in bf]),
        "_int_mm": rate(m, n, k, [lambda x=x: torch._int_mm(x[0], x[1].T) for x in i8]),
        "_scaled_mm": rate(m, n, k, [lambda x=x: torch._scaled_mm(x[0], x[1].T, one, one, **fast) for x in f8]),
    }


def label(tile: Config) -> str:
    names = {"stages": "s", "warps": "w", "per_sm": "x", "promote": "p", "flatten": "f"}
    rest = " ".join(f"{short}{tile[name]:d}" for name, short in names.items() if tile.get(name))
    return f"{tile['kernel']} {tile['m']}x{tile['n']}x{tile['k']} {rest}"


def table(sweep: bool) -> list[dict[str, Any]]:
    op = torch.ops.hadamard.quantized_mm
    rows = []
    for m, n, k in SHAPES:
        row: dict[str, Any] = {"m": m, "n": n, "k": k, **peers(m, n, k), "configs": {}}
        for kind, tiles in SWEEP.items():
            group = group_of(kind)
            sets = [operands(m, n, k, CARRIERS[kind[:4].strip()], group) for _ in copies(m, n, k)]
            if (m, n, k) not in GRAD_WEIGHTS:
                sets = [[a, b, scale_a, scale_b[:1].contiguous()] for a, b, scale_a, scale_b in sets]
            row[kind] = rate(m, n, k, [lambda x=x, g=group: op(*x, g, torch.bfloat16) for x in sets])
            out = poisoned(m, n, torch.bfloat16)
            for tile in tiles if sweep else ():
                whole = not tile.get("stream", tile["kernel"] == "stream")
                if whole or -(-m // tile["m"]) * -(-n // tile["n"]) < 264:
                    calls = [lambda x=x, g=group, t=tile, o=out: launch(t, *x, g, o) for x in sets]
                    row["configs"][f"{kind} {label(tile)}"] = rate(m, n, k, calls)
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


def slug_of_device() -> str:
    """Device and day, for the name of a file."""
    device = re.sub(r"\W+", "-", torch.cuda.get_device_name().lower()).strip("-")
    return f"{device}-{datetime.date.today().isoformat()}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file, or folder, of the JSON")
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--probe", action="store_true", help="where the FP8 carrier stops being exact")
    parser.add_argument("--check", default="0/1", help="I/N: check only part I of N, and time nothing if N > 1")
    options = parser.parse_args()
    library.load()
    torch.manual_seed(0)
    part, parts = map(int, options.check.split("/"))
    wrong = check_configs(part, parts)
    print("correctness:", "\n  ".join(wrong) or "every configuration agrees", flush=True)
    if parts > 1:
        return bool(wrong)
    flags = "".join(f" --{name}" for name in ("sweep", "probe") if getattr(options, name))
    result = {
        "device": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "triton": triton.__version__, "python": platform.python_version()},
        "sources": library.source_digest(),
        "command": f"python benchmarks/quantized_mm.py{flags}",
        "unit": "TOP/s",
        "wrong": wrong,
        "float8": probe_float8() if options.probe else [],
        "overhead_us": overhead(),
        "rows": table(options.sweep),
    }
    print("host time per call, us:", result["overhead_us"])
    if options.out:
        path = options.out / f"quantized_mm-{slug_of_device()}.json" if options.out.is_dir() else options.out
        path.write_text(json.dumps(result, indent=1))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
