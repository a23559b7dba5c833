"""Which tensors of HDQT's backward need stochastic rounding: average accuracy on class-incremental digits.

HDQT (arXiv 2310.03675) rounds g_y stochastically for both gradients, the transformed weight to nearest for the gradient
of the input, and the transformed input stochastically for the gradient of the weight. Here each of these four is
changed alone, then all are rounded to nearest, and to nearest but for one. The forward rounds to nearest throughout.

python benchmarks/hdqt_rounding.py [--seeds 3] [--methods LwF,iCaRL] [--epochs N] [--device cpu|cuda] [--quick]
"""

from __future__ import annotations

import sys
from typing import Any

from _incremental import options_of, run

from examples.class_incremental.contenders import hdqt

TENSORS = {
    "g for g_x": ("grad_input", "rounding"),
    "w for g_x": ("grad_input", "weight_rounding"),
    "g for g_w": ("grad_weight", "rounding"),
    "x for g_w": ("grad_weight", "input_rounding"),
}
PUBLISHED = {"g for g_x": "stochastic", "w for g_x": "nearest", "g for g_w": "stochastic", "x for g_w": "stochastic"}


def rounded(roundings: dict[str, str]) -> dict[str, Any]:
    """The options in which each of the four tensors is rounded as it says."""
    fields: dict[str, dict[str, Any]] = {}
    for tensor, rounding in roundings.items():
        role, field = TENSORS[tensor]
        fields.setdefault(role, {})[field] = rounding
    return hdqt(**fields)


def contenders() -> dict[str, dict[str, Any]]:
    """Options by name, exact first."""
    nearest = dict.fromkeys(TENSORS, "nearest")
    other = {"nearest": "stochastic", "stochastic": "nearest"}
    return {
        "exact": {"profile": "exact"},
        "as published": rounded(PUBLISHED),
        **{f"{t} {other[PUBLISHED[t]]}": rounded({**PUBLISHED, t: other[PUBLISHED[t]]}) for t in TENSORS},
        "all nearest": rounded(nearest),
        **{f"only {t} stochastic": rounded({**nearest, t: "stochastic"}) for t in TENSORS},
    }


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options = options_of(__doc__, argv, "LwF,iCaRL")
    run("hdqt_rounding", options, contenders())
    return 0


if __name__ == "__main__":
    sys.exit(main())
