"""Both quantised forms in one read of what a tensor is made of, beside separate kernels, on a CUDA device.

    python benchmarks/one_read.py [--quick] [--out FOLDER]

For each tensor [L, C]: `one read` is ``quantize_both``; `apart` is what does the same without it, in the same run:
Inductor's kernel for the pointwise chain, then ``quantize_rows`` and ``compress_tokens`` with scales over whole axes.
`TB/s` counts the bytes that the one kernel must move: its inputs once, its results once. `copy` is a device-to-device
copy. Every kernel is first held against the operator on the CPU, on a small odd tensor.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from _common import arguments, forget, record
from torch import Tensor

from hadamard_fx.kernels import library
from hadamard_fx.kernels.prologue import Prologue, Step

SHAPES = ((50432, 3072), (50432, 2304), (50432, 768), (16384, 8192), (16384, 2048))
"""Gradients and activations of ViT-B/16 at batch 256, and of a Llama of 1B at 8 × 2048 tokens."""

ROWS, TOKENS = [16, 4, 128], [16, 8, 8, 256]

IDENTITY = Prologue.identity()
GELU_BACKWARD = Prologue(
    ("tile", "tile"),
    (
        *(
            Step("mul", ("x1", math.sqrt(0.5))),
            Step("erf", ("s0",)),
            Step("add", ("s1", 1.0)),
            Step("mul", ("s2", 0.5)),
        ),
        *(Step("mul", ("x1", "x1")), Step("mul", ("s4", -0.5)), Step("exp", ("s5",))),
        *(Step("mul", ("s6", 1 / math.sqrt(2 * math.pi))), Step("mul", ("x1", "s7")), Step("add", ("s3", "s8"))),
        Step("mul", ("x0", "s9")),
    ),
    "s10",
)
SILU_TIMES = Prologue(
    ("tile", "tile"), (Step("sigmoid", ("x0",)), Step("mul", ("x0", "s0")), Step("mul", ("s1", "x1"))), "s2"
)


def gelu_backward(g: Tensor, x: Tensor) -> Tensor:
    return torch.ops.aten.gelu_backward(g, x)


def silu_times(x: Tensor, y: Tensor) -> Tensor:
    return torch.nn.functional.silu(x) * y


CASES: dict[str, tuple[Prologue, Callable[..., Tensor] | None, bool, bool, bool]] = {
    "g_y: rows, tokens and sums": (IDENTITY, None, True, True, False),
    "g_y behind a GELU": (GELU_BACKWARD, gelu_backward, True, True, False),
    "g_y: rows": (IDENTITY, None, True, False, False),
    "x: tokens": (IDENTITY, None, False, True, False),
    "x = SiLU(u)·v: tokens, and x": (SILU_TIMES, silu_times, False, True, True),
}
"""Name -> (chain, the same for Inductor, rows?, tokens?, y kept?)."""


def call(case: str, inputs: list[Tensor], seeds: Tensor) -> tuple[Any, ...]:
    """Arguments of ``quantize_both``: gradients round stochastically, activations to nearest."""
    prologue, _, rows, tokens, keep = CASES[case]
    rounding = "stochastic" if rows else "nearest"
    forms = (ROWS if rows else [], rounding, "float8_e4m3", seeds[0], TOKENS if tokens else [], rounding, seeds[1])
    return (inputs, prologue.to_text(), torch.bfloat16, *forms, rows and tokens, keep)


def apart(case: str, inputs: list[Tensor], seeds: Tensor, producer: Callable[..., Tensor] | None) -> None:
    """The same with a kernel for each."""
    _, _, rows, tokens, _ = CASES[case]
    y = inputs[0] if producer is None else producer(*inputs)
    rounding = "stochastic" if rows else "nearest"
    ops = torch.ops.hadamard
    if rows:
        ops.quantize_rows(y, seeds[0], 16, 4, "token", rounding, "int8")
    if tokens:
        ops.compress_tokens(y, seeds[1], 16, 8, 8, "channel", rounding, 0, rows)


def milliseconds(calls: list[Callable[[], object]], replays: int) -> float:
    """Median of CUDA-graph replays of all calls, per call: inputs in rotation exceed the cache."""
    for run in calls:
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in calls:
            run()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(replays + 1)]
    for event in events:
        graph.replay()
        event.record()
    events[-1].synchronize()
    return statistics.median(a.elapsed_time(b) for a, b in pairwise(events)) / len(calls)


def flipped(case: str) -> float:
    """Share of integers that differ from the CPU's by more than one step, on an odd tensor."""
    torch.manual_seed(1)
    inputs = [torch.randn(700, 200).bfloat16() for _ in CASES[case][0].inputs]
    seeds = torch.tensor([3, 4])
    op = library.load()["quantize_both"].op
    expected = op(*call(case, inputs, seeds))
    found = op(*call(case, [x.cuda() for x in inputs], seeds.cuda()))
    pairs = [(a.cpu().float(), b.float()) for a, b in zip(found, expected, strict=True) if a.numel()]
    return max(float(((a - b).abs() > 1).float().mean()) for a, b in pairs if float(b.abs().max()) > 2)


def measured(case: str, shape: tuple[int, int], seeds: Tensor, replays: int) -> dict[str, Any]:
    """One row of the table."""
    prologue, producer, *_ = CASES[case]
    compiled = torch.compile(producer) if producer is not None else None
    op = library.load()["quantize_both"].op
    sets = [[torch.randn(shape, device="cuda").bfloat16() for _ in prologue.inputs] for _ in range(3)]
    moved = [*sets[0], *op(*call(case, sets[0], seeds))]
    once = milliseconds([lambda s=s: op(*call(case, s, seeds)) for s in sets], replays)  # type: ignore[misc]
    many = milliseconds([lambda s=s: apart(case, s, seeds, compiled) for s in sets], replays)  # type: ignore[misc]
    return {
        "tensor": case,
        "L, C": "{}, {}".format(*shape),
        "one read, ms": once,
        "apart, ms": many,
        "speed": many / once,
        "TB/s": sum(t.numel() * t.element_size() for t in moved) / once / 1e9,
    }


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 if a kernel is wrong."""
    options = arguments(__doc__, argv)
    if options.device != "cuda":
        print("the kernels that read once run on CUDA devices of compute capability 9.0 only", file=sys.stderr)
        return 2
    wrong = {case: flipped(case) for case in CASES}
    seeds = torch.tensor([5, 0, 6], device="cuda")[::2].clone()
    rows = []
    for shape in SHAPES[:1] if options.quick else SHAPES:
        for case in CASES:
            forget()
            rows.append(measured(case, shape, seeds, 3 if options.quick else 12))
    x = torch.randn(SHAPES[0], device="cuda").bfloat16()
    copy = 2 * x.numel() * 2 / milliseconds([x.clone] * 3, 12) / 1e9
    record("one_read", options, rows, {"copy, TB/s": copy, "more than a step from the CPU": wrong})
    return int(any(share > 2e-3 for share in wrong.values()))


if __name__ == "__main__":
    sys.exit(main())
