"""What convolutions keep for the backward, and what their products are predicted to take, under each profile.

    python benchmarks/convolutions.py [--device cpu|cuda] [--quick]

Bytes are counted on the partitioned graphs, seconds are predictions of the device profile: nothing is timed here
(``training_step.py --model resnet32`` does that). ResNet-32 is all 3×3; a bottleneck of a ResNet-50 is 1×1, 3×3, 1×1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _common import arguments, record
from torch import Tensor, nn

import hadamard_fx
from examples.resnet32 import ResNet32

PROFILES = ("hot", "hdqt", "auto")


class Bottleneck(nn.Module):
    """relu(x + convolutions of 1×1, 3×3 and 1×1, each with a batch norm), He et al. 2015, figure 5."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        sizes = ((channels, width, 1), (width, width, 3), (width, channels, 1))
        self.convolutions = nn.ModuleList(nn.Conv2d(i, o, k, padding=k // 2, bias=False) for i, o, k in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _ in sizes)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for number, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            y = norm(convolution(y if number == 0 else torch.relu(y)))
        return torch.relu(x + y)


def workloads(quick: bool, device: str) -> dict[str, tuple[Callable[[Tensor], Tensor], Tensor]]:
    """Models and their images."""
    torch.manual_seed(0)
    small = ResNet32(blocks=1 if quick else 5).to(device)
    blocks = nn.Sequential(nn.Conv2d(3, 256, 4, stride=4), *(Bottleneck(256, 64) for _ in range(1 if quick else 2)))
    blocks.to(device)

    def autocast(images: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            result: Tensor = blocks(images)
        return result

    large = torch.rand(2 if quick else 8, 3, 64, 64, device=device)
    return {
        "ResNet-32": (small, torch.rand(4 if quick else 32, 3, 32, 32, device=device)),
        "patches and bottlenecks": (blocks, large),
        "the same under bfloat16 autocast": (autocast, large),
    }


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options = arguments(__doc__, argv)
    rows: list[dict[str, Any]] = []
    for name, (model, images) in workloads(options.quick, options.device).items():
        for profile in PROFILES:
            explain = hadamard_fx.explain(model, loss=_loss, options={"profile": profile})
            (report,) = explain(images).reports
            decisions = [d for d in report.plan.decisions if d.gemm.window is not None]
            rows.append(
                {
                    "model": name,
                    "profile": profile,
                    "convolutions rewritten": sum(d.rewritten for d in decisions),
                    "of": len(decisions),
                    "saved, MiB": (report.saved_after or 0) / 2**20,
                    "saved if exact, MiB": (report.saved_before or 0) / 2**20,
                    "predicted, ms": 1e3 * report.seconds,
                    "predicted if exact, ms": 1e3 * report.exact_seconds,
                    "priced as": report.plan.device,
                }
            )
    record("convolutions", options, rows)
    return 0


def _loss(result: Tensor) -> Tensor:
    return F.softplus(result.float()).mean()


if __name__ == "__main__":
    sys.exit(main())
