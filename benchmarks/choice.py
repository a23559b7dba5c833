"""Seconds that the choice takes for 1,000 products, without and with a memory budget.

    python benchmarks/choice.py [--quick]

The products are those of a transformer's layers (Q, K and V from one x, the output, an MLP), each layer of a width of
its own so that none is solved for another. The budget counts bytes of the products alone: partitions take their own
time.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from _common import arguments, record

from hadamard_fx.cost_model.device_profile import profile_for
from hadamard_fx.passes.choose import ChooseSchemes
from hadamard_fx.passes.one_read import OneRead
from hadamard_fx.plan import Decision, Gemm, Role, Size
from hadamard_fx.policy import Policy


def products(count: int) -> tuple[tuple[Gemm, ...], tuple[OneRead, ...]]:
    """So many products, at least, and the reads of their gradients."""
    gemms: list[Gemm] = []
    reads: list[OneRead] = []
    layer = 0
    while len(gemms) < count:
        width, tokens = 512 + 16 * layer, Size(16384)
        sizes = {"q": (width, width), "k": (width, width), "v": (width, width), "o": (width, width)}
        sizes |= {"up": (4 * width, width), "down": (width, 4 * width)}
        for name, (out, into) in sizes.items():
            path = f"blocks.{layer}.{name}"
            x, w, g = (f"x{layer}" if name in "qkv" else f"x_{path}"), f"{path}.weight", f"g_{path}"
            product = Gemm(path, Role.FORWARD, path, tokens, Size(out), Size(into), "bfloat16", "cuda", x, w, weight=w)
            back = replace(
                product, role=Role.GRAD_INPUT, node=f"{path} g_x", N=Size(into), K=Size(out), left=g, right=w
            )
            held = replace(product, role=Role.GRAD_WEIGHT, node=f"{path} g_w", M=Size(out), N=Size(into), K=tokens)
            pair = replace(back, gradient="left"), replace(held, left=g, right=x, gradient="left")
            gemms += [product, *pair]
            stored = 2 * tokens.hint * out
            reads.append(OneRead(g, pair[0].node, pair[1].node, tokens.hint, out, stored, stored, None, 0))
        layer += 1
    return tuple(gemms), tuple(reads)


def kept(decisions: tuple[Decision, ...], activation_budget: float = 1.0) -> int:
    """Bytes of the products alone; without decisions those of exact."""
    if not decisions:
        return TOTAL[0]
    return int(sum(decision.cost.saved_bytes for decision in decisions) * activation_budget)


TOTAL = [1]


def timed(call: Callable[[], object], count: int = 5) -> list[float]:
    """Seconds of each call, after one that is not counted."""
    call()
    spent = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        spent.append(time.perf_counter() - began)
    return spent


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options = arguments(__doc__, argv)
    gemms, reads = products(60 if options.quick else 1000)
    rows = []
    for profile in ("auto", "hot"):
        for budget in (1.0, 0.6, 0.3):
            policy = Policy.resolve({"profile": profile, "memory_budget": budget}, environ={}, directory="/")
            chooser = ChooseSchemes(policy, profile_for("cuda", "h200"))
            exact = chooser.choose(gemms, reads).decisions
            TOTAL[0] = sum(decision.exact_cost.saved_bytes for decision in exact)
            seconds = timed(lambda chooser=chooser: chooser.choose(gemms, reads, kept))  # type: ignore[misc]
            rows.append({"profile": profile, "budget": budget, "products": len(gemms),
                         "seconds": statistics.median(seconds), "slowest": max(seconds)})  # fmt: skip
    record("choice", options, rows, {"sizes": {"products": len(gemms)}})
    return 0


if __name__ == "__main__":
    sys.exit(main())
