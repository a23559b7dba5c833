"""The transform-and-quantise kernels on a CUDA device: checked against the CPU path, then timed.

    python benchmarks/transform_kernels.py [--sweep] [--output FILE]

A bandwidth is the bytes of one read of the input and one write of the result, whatever the kernel moves, over the
median time (the L2 cache is cleared before each call). ``--sweep`` times every tile of a short list instead of the tile
that the launcher picks. The result is one JSON object with device, versions and command.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import datetime
import itertools
import json
import math
import multiprocessing
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.testing import do_bench, do_bench_cudagraph

from hadamard_fx.errors import KernelError
from hadamard_fx.kernels import compress_tokens, quantize_rows, quantize_weight, triton_rows, triton_tokens

SHAPES = ((50432, 3072), (50432, 768), (16384, 8192), (16384, 2048))
WEIGHTS = ((3072, 768), (8192, 2048))
KERNELS = {module.KERNEL.name: module.KERNEL for module in (quantize_rows, compress_tokens, quantize_weight)}
SEED = 0x123_4567_89AB_CDEF


@dataclass(frozen=True)
class Case:
    """One call of a kernel: picklable, so that worker processes compile while this one measures.

    Attributes:
        kernel: name of the operator.
        shape: of the first argument, drawn from a normal distribution.
        settings: the arguments after the tensors.
        dtype: of the first argument.
        tile: tile sizes, None for the launcher's own choice.
    """

    kernel: str
    shape: tuple[int, int]
    settings: tuple[Any, ...]
    dtype: str = "bfloat16"
    tile: tuple[tuple[str, int], ...] | None = None

    def arguments(self, device: str = "cuda") -> tuple[Any, ...]:
        x = torch.randn(*self.shape, device=device).to(getattr(torch, self.dtype))
        if self.kernel == "quantize_weight":
            return (x, *self.settings)
        seed = torch.tensor(SEED, device=device) if "stochastic" in self.settings else None
        return (x, seed, *self.settings)

    def call(self, arguments: tuple[Any, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        if self.tile is None:
            return KERNELS[self.kernel].op(*arguments)
        launcher = triton_rows.quantize_rows if self.kernel == "quantize_rows" else triton_tokens.compress_tokens
        return launcher(*arguments, tile=dict(self.tile))

    @property
    def payload(self) -> int:
        """Bytes of one read of the input and one write of the integers."""
        elements = math.prod(self.shape)
        kept = elements * self.settings[1] // self.settings[0] if self.kernel == "compress_tokens" else elements
        return elements * getattr(torch, self.dtype).itemsize + kept


def compile_only(case: Case) -> None:
    """Fill Triton's cache on disk; whatever fails here fails again where it is reported."""
    with contextlib.suppress(KernelError):
        case.call(case.arguments())
        torch.cuda.synchronize()


def check(case: Case) -> dict[str, Any]:
    """How the operator on the device differs from the operator on the CPU."""
    torch.set_num_threads(1)
    arguments = case.arguments()
    try:
        q, scale = case.call(arguments)[:2]
    except KernelError as error:
        return {**asdict(case), "error": str(error.cause)[:300], "passed": False}
    expected, expected_scale = KERNELS[case.kernel].op(
        *(a.cpu() if isinstance(a, torch.Tensor) else a for a in arguments)
    )[:2]
    difference = (q.cpu().float() - expected.float()).abs()
    ratio = (scale.cpu() / expected_scale - 1).abs().max().item()
    fraction = (difference > 0).float().mean().item()
    # One step at most; a hash of the value's bits turns a difference in the last bit of v into a new draw.
    allowed = 1e-4 if "pseudo_stochastic" not in case.settings else 0.3 if case.dtype == "float32" else 2e-2
    passed = difference.max().item() <= 1 and ratio < 1e-6 and fraction <= allowed
    return {**asdict(case), "flipped": fraction, "largest": difference.max().item(), "scale": ratio, "passed": passed}


def check_cases() -> Iterator[Case]:
    for dtype, rounding in itertools.product(("bfloat16", "float16", "float32"), triton_rows.CODES):
        yield Case("quantize_rows", (1000, 3072), (16, 4, "token", rounding, "int8"), dtype)
        yield Case("quantize_rows", (1000, 3072), (16, 8, "tensor", rounding, "int8"), dtype)
        yield Case("compress_tokens", (5000, 300), (16, 8, 8, "channel", rounding, 1024), dtype)
        yield Case("compress_tokens", (5000, 300), (16, 8, 8, "channel", rounding, 0), dtype)
    for rows, columns, order in ((333, 1000, 64), (77, 130, 128), (65, 9000, 16), (33, 20000, 32), (1, 1, 2)):
        yield Case("quantize_rows", (rows, columns), (order, 4, "token", "stochastic", "int8"))
        yield Case("quantize_rows", (rows, columns), (order, 4, "tensor", "stochastic", "float8_e4m3"))
    for tokens, channels, order, rank, group in (
        *((3001, 77, 16, 10, 48), (333, 64, 128, 96, 0), (3001, 100, 64, 16, 512), (1, 1, 2, 1, 0)),
        *((4096, 256, 8, 8, 1024), (700, 40, 4, 1, 64), (5000, 33, 32, 5, 96)),
    ):
        for scale in ("channel", "tensor"):
            yield Case("compress_tokens", (tokens, channels), (order, rank, 8, scale, "stochastic", group))
    for k, n, order in ((3072, 768, 16), (100, 30, 64)):
        yield Case("quantize_weight", (k, n), (order, 4, "token", "float8_e4m3"))
        yield Case("quantize_weight", (k, n), (order, 8, "tensor", "int8"), "float32")


def row_tiles(columns: int) -> Iterator[dict[str, Any]]:
    """Tiles of ``quantize_rows`` worth trying: whole rows held in registers, in up to four chunks, or passed twice."""
    for chunk, width, warps in itertools.product((256, 512, 1024, 2048, 4096, 8192), (16, 64), (4, 8)):
        chunks = math.ceil(columns / chunk)
        if chunks > 4 or (chunks == 1 and chunk > 2 * columns):
            continue
        for rows, hold in itertools.product((1, 2, 4, 8, 16), (True, False) if chunks > 1 else (True,)):
            if 2048 <= rows * chunk * (chunks if hold else 1) <= 8192:
                tile = {"ROWS": rows, "PIECES": chunk // width, "WIDTH": width, "CHUNKS": chunks, "HOLD": hold}
                yield {**tile, "num_warps": warps}


def token_tiles() -> Iterator[dict[str, Any]]:
    """Tiles of ``compress_tokens`` worth trying for order 16."""
    for channels, blocks, warps, stages in (
        *((64, 4, 4, 4), (64, 8, 4, 4), (64, 8, 4, 3), (64, 8, 8, 4), (128, 4, 4, 4), (128, 4, 8, 4), (32, 8, 4, 4)),
    ):
        yield {"CHANNELS": channels, "BLOCKS": blocks, "num_warps": warps, "num_stages": stages}


def timing_cases(sweep: bool) -> Iterator[Case]:
    for shape in SHAPES:
        tiles = [tuple(t.items()) for t in row_tiles(shape[1])] if sweep else [None]
        for tile, rounding in itertools.product(tiles, ("stochastic",) if sweep else triton_rows.CODES):
            yield Case("quantize_rows", shape, (16, 4, "token", rounding, "int8"), tile=tile)
        groups = ((1024, "stochastic"), (0, "stochastic"), *(() if sweep else ((1024, "nearest"), (0, "nearest"))))
        for group, rounding in groups:
            for tile in [tuple(t.items()) for t in token_tiles()] if sweep else [None]:
                yield Case("compress_tokens", shape, (16, 8, 8, "channel", rounding, group), tile=tile)
    for shape in WEIGHTS:
        yield Case("quantize_weight", shape, (16, 4, "token", "int8"))


def timed(case: Case, arguments: tuple[Any, ...]) -> dict[str, Any]:
    """Milliseconds and GB/s, or the error."""
    try:
        milliseconds = do_bench(lambda: case.call(arguments), warmup=5, rep=20, return_mode="median")
    except KernelError as error:
        return {**asdict(case), "error": str(error.cause)[:200]}
    result = {**asdict(case), "ms": milliseconds, "GB/s": case.payload / milliseconds / 1e6}
    if case.tile is None:  # replayed from a CUDA graph: no launch overhead, but what fits the L2 cache stays there
        with torch.cuda.stream(torch.cuda.Stream()):
            result["graph ms"] = do_bench_cudagraph(lambda: case.call(arguments), rep=20, return_mode="median")
    return result


def copy_bandwidth() -> float:
    """GB/s of a device-to-device copy, read plus write."""
    x = torch.empty(1 << 29, dtype=torch.bfloat16, device="cuda").normal_()
    return 4 * x.numel() / do_bench(x.clone, warmup=5, rep=20, return_mode="median") / 1e6


def show(rows: list[dict[str, Any]], best: int) -> None:
    """The ``best`` fastest of every kernel, shape and setting."""

    def place(row: dict[str, Any]) -> tuple[str, ...]:
        return (row["kernel"], str(row["shape"]), str(row["settings"]))

    for _, group in itertools.groupby(sorted(rows, key=place), place):
        for row in sorted(group, key=lambda r: r.get("ms", math.inf))[:best]:
            tile = " ".join(f"{name}={value}" for name, value in row["tile"] or ())
            print(
                *place(row),
                tile,
                *(f"{row[k]:.4g}" for k in ("ms", "GB/s", "graph ms") if k in row),
                row.get("error", ""),
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--only", default="", help="the kernel to sweep, all by default")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--workers", type=int, default=8, help="processes that compile and check")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.workers, mp_context=context) as pool:
        checked = list(pool.map(check, check_cases()))
        cases = [case for case in timing_cases(options.sweep) if options.only in case.kernel]
        list(pool.map(compile_only, [*cases, *timing_cases(sweep=False)]))
    failed = [result for result in checked if not result["passed"]]
    for result in failed:
        print("FAILED", result)
    print(f"{len(checked) - len(failed)} of {len(checked)} checks passed", flush=True)
    rows: list[dict[str, Any]] = []
    for _, group in itertools.groupby(cases, lambda case: (case.kernel, case.shape)):
        arguments: dict[Any, tuple[Any, ...]] = {}
        for case in group:
            if case.settings not in arguments:
                arguments[case.settings] = case.arguments()
            rows.append(timed(case, arguments[case.settings]))
    if options.sweep:
        rows += [timed(case, case.arguments()) for case in timing_cases(sweep=False) if options.only in case.kernel]
    show(rows, 4)
    copy = copy_bandwidth()
    print(f"copy {copy:.0f} GB/s")
    result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(),
        "versions": {"torch": torch.__version__, "triton": triton.__version__, "python": sys.version.split()[0]},
        "command": " ".join(["python", *sys.argv]),
        "copy GB/s": copy,
        "checks": checked,
        "timings": rows,
    }
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
