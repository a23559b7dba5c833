"""The gradients of a compiled linear layer against eager evaluation of the same formula in float64.

    python benchmarks/verify_gradients.py [--device cpu|cuda] [--quick]

The layer is compiled with HOT's two schemes, rounding to nearest, so that the formula has one answer:

    g_x = s_g s_w · Q4(g_y B) · Q4(Bᵀ w)          g_w = s_g s_x · Q8(Ĥ g_y)ᵀ · Q8(Ĥ x)        (HOT, section 3)

Columns: `before rounding`, the RMS ratio of what the kernels round, float32 against float64, seen through their scales
(a scale is the largest magnitude of its row); `flips`, the share of integers that differ (a value that fell on the
other side of a half; 1e-4 may, or a single one), and `step`, by how much at most; `result`, the RMS ratio of the
compiled gradient to the formula in float64 on the integers of the kernels, and what it may be; `error`, to the exact
gradient.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import torch
from _common import arguments, record
from torch import Tensor, nn

import hadamard_fx
from hadamard_fx.kernels import compress_tokens, library, quantize_rows, quantize_weight

ORDER, RANK = 16, 8
RESULT_BAR = {torch.float32: 1e-6, torch.bfloat16: 2.0**-7 / math.sqrt(12)}
"""The result is rounded once more, to its dtype: bfloat16's coarsest step, evenly spread, has that RMS."""

Pair = tuple[Tensor, Tensor]


def rms_ratio(value: Tensor, truth: Tensor) -> float:
    """‖value − truth‖ / ‖truth‖ in float64."""
    difference = (value.double() - truth.double()).norm() / truth.double().norm()
    return float(difference) if truth.numel() else 0.0


def compare(ours: Sequence[Pair], reference: Sequence[Pair]) -> dict[str, float]:
    """Integers and scales of the kernels against those of the formula in float64."""
    steps = [(q.float().double() - truth).abs() for (q, _), (truth, _) in zip(ours, reference, strict=True)]
    scales = [rms_ratio(scale, truth) for (_, scale), (_, truth) in zip(ours, reference, strict=True)]
    return {
        "before rounding": max(scales),
        "flips": max(float((step > 0).double().mean()) for step in steps),
        "flipped": max(int((step > 0).sum()) for step in steps),
        "step": max(float(step.max()) for step in steps),
    }


def product(left: Pair, right: Pair, group: int = 0) -> Tensor:
    """Σ over groups of scale · scale · integers · integers, in float64, which holds such sums of integers exactly."""
    (a, scale_a), (b, scale_b) = left, right
    width = group or a.shape[1]
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.float64, device=a.device)
    for g in range(scale_a.shape[0]):
        columns = slice(g * width, (g + 1) * width)
        integers = a[:, columns].float().double() @ b[:, columns].float().double().T
        right_scale = scale_b[min(g, scale_b.shape[0] - 1)]  # one row serves all groups
        total += scale_a[g].double()[:, None] * right_scale.double()[None, :] * integers
    return total


def grad_input(g: Tensor, w: Tensor, carrier: str, group: int) -> tuple[Tensor, dict[str, float]]:
    """(formula on the kernels' integers, what the integers are like)."""
    rows, weight = (ORDER, 4, "token", "nearest", carrier, group), (ORDER, 4, "token", carrier)
    ours = [torch.ops.hadamard.quantize_rows(g, None, *rows), torch.ops.hadamard.quantize_weight(w, *weight)]
    truth = [quantize_rows.reference(g, None, *rows), quantize_weight.reference(w, *weight)]
    return product(ours[0], ours[1], group), compare(ours, truth)


def grad_weight(g: Tensor, x: Tensor, group: int) -> tuple[Tensor, dict[str, float]]:
    """Likewise."""
    settings = (ORDER, RANK, 8, "channel", "nearest", group)
    ours = [torch.ops.hadamard.compress_tokens(operand, None, *settings)[:2] for operand in (g, x)]
    truth = [compress_tokens.reference(operand, None, *settings)[:2] for operand in (g, x)]
    return product(ours[0], ours[1], group // ORDER * RANK), compare(ours, truth)


def compiled_gradients(
    layer: nn.Linear, x: Tensor, g: Tensor, options: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """y, g_x and g_w of the layer, compiled with the backend's ``options``."""
    torch._dynamo.reset()
    for tensor in (x, layer.weight):
        tensor.grad = None
    backend = hadamard_fx.hadamard if options else "inductor"
    y = torch.compile(layer, backend=backend, options=options or None)(x)
    y.backward(g)
    assert x.grad is not None
    assert layer.weight.grad is not None
    return y.detach(), x.grad.clone(), layer.weight.grad.clone()


def rows_of(size: tuple[int, int, int], dtype: torch.dtype, device: str) -> list[dict[str, Any]]:
    """Both gradients of a layer I → O on L tokens."""
    tokens, inputs, outputs = size
    carrier = "float8_e4m3" if device == "cuda" else "int8"
    columns, group = {torch.float32: (0, 1024), torch.bfloat16: (128, 256)}[dtype] if device == "cuda" else (0, 0)
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs, bias=False, device=device, dtype=dtype)
    x = torch.randn(tokens, inputs, device=device, dtype=dtype, requires_grad=True)
    g = torch.randn(tokens, outputs, device=device, dtype=dtype)
    options = {
        "profile": "hot",
        "grad_input": {"rounding": "nearest", "carrier": carrier, "group": columns},
        "grad_weight": {"rounding": "nearest", "group": group},
    }
    plain = compiled_gradients(layer, x, g, {})
    ours = compiled_gradients(layer, x, g, options)
    formulas = {
        "g_x": (ours[1], plain[1], *grad_input(g, layer.weight.detach(), carrier, columns)),
        "g_w": (ours[2], plain[2], *grad_weight(g, x.detach(), group)),
    }
    return [
        {
            "L, I, O": "{}, {}, {}".format(*size),
            "dtype": str(dtype).removeprefix("torch."),
            "gradient": name,
            **seen,
            "result": rms_ratio(value, formula),
            "at most": RESULT_BAR[dtype],
            "error": rms_ratio(value, exact),
            "same forward": torch.equal(ours[0], plain[0]),
        }
        for name, (value, exact, formula, seen) in formulas.items()
    ]


def passed(row: dict[str, Any]) -> bool:
    """Whether a row meets the bars."""
    few = row["flips"] <= 1e-4 or row["flipped"] <= 1
    integers = row["before rounding"] <= 1e-6 and few and row["step"] <= 1
    return bool(integers and row["result"] <= row["at most"] and row["same forward"])


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 if a bar is missed, else 0."""
    options = arguments(__doc__, argv)
    library.load()
    cuda = options.device == "cuda" and not options.quick
    sizes = [(512, 256, 384), (197 * 2, 192, 100), (33, 17, 5)]
    sizes += [(16384, 2048, 8192), (50432, 768, 3072)] if cuda else []
    rows = [
        row
        for size in sizes
        for dtype in (torch.float32, torch.bfloat16)
        for row in rows_of(size, dtype, options.device)
    ]
    record("verify_gradients", options, rows)
    bad = [row for row in rows if not passed(row)]
    for row in bad:
        print(f"missed: {row}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
