"""Width of HDQT's accumulators and tile of its forward: average accuracy on class-incremental digits.

An accumulator of A bits cuts what is beyond ±(2^(A−1) − 1); the forward does so after every tile of products, the
gradients once, after all of them (HDQT, arXiv 2310.03675: A = 8, tiles of 32). How often that happens is counted
(``count_saturation``); the shares are of all partial sums of a product, over all steps, layers and seeds.

python benchmarks/hdqt_accumulators.py [--bits 4,6,8,12,16] [--tiles 16,32,64,128] [--seeds 3] [--methods BiC] [--quick]
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

from _incremental import numbers, options_of, run

import hadamard_fx
from examples.class_incremental.contenders import hdqt
from hadamard_fx.kernels.saturation import forget


def contenders(bits: list[int], tiles: list[int]) -> dict[str, dict[str, Any]]:
    """Options by name, exact first."""
    return {
        "exact": {"profile": "exact"},
        **{
            f"{a}-bit sums, tile {tile}": {**hdqt(a, forward={"tile": tile}), "count_saturation": True}
            for a in bits
            for tile in tiles
        },
    }


def saturated() -> dict[str, float | None]:
    """Per cent of each product's partial sums that saturated since the last call; None where nothing was counted."""
    found: Counter[str] = Counter()
    sums: Counter[str] = Counter()
    for report in {report.plan.digest(): report for report in hadamard_fx.reports()}.values():
        for entry in report.saturation:
            role = str(entry.decision.gemm.role)
            found[role] += entry.saturated
            sums[role] += entry.sums
    forget()
    roles = ("forward", "grad_input", "grad_weight")
    return {f"{role}, % cut": 100 * found[role] / sums[role] if sums[role] else None for role in roles}


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options = options_of(
        __doc__,
        argv,
        "BiC",
        ("--bits", {"type": numbers, "default": "4,6,8,12,16", "help": "of the accumulators, 4 to 32"}),
        ("--tiles", {"type": numbers, "default": "16,32,64,128", "help": "of the forward"}),
    )
    bits, tiles = (options.bits[:2], options.tiles[:1]) if options.quick else (options.bits, options.tiles)
    forget()
    run("hdqt_accumulators", options, contenders(bits, tiles), saturated)
    return 0


if __name__ == "__main__":
    sys.exit(main())
