"""What is compared: options of the backend by name, the first of them exact."""

from __future__ import annotations

from typing import Any

__all__ = ["EXPERIMENTS", "hdqt"]


def hdqt(accumulator_bits: int = 8, bits: int = 4, **fields: dict[str, Any]) -> dict[str, Any]:
    """The options of the profile with other numbers than the published ones.

    Args:
        accumulator_bits, bits: of all three products.
        fields: further fields of single products: ``forward={"tile": 64}``.
    """
    numbers = {"bits": bits, "accumulator_bits": accumulator_bits}
    roles = ("forward", "grad_input", "grad_weight")
    schemes = {role: {"kind": f"saturating_{role}", **numbers, **fields.get(role, {})} for role in roles}
    return {"profile": "hdqt", **schemes}


EXACT = {"exact": {"profile": "exact"}}

EXPERIMENTS: dict[str, dict[str, dict[str, Any]]] = {
    "sums": {**EXACT, "hdqt, 8-bit sums": hdqt(8), "hdqt, 4-bit sums": hdqt(4)},
    "rounding": {
        **EXACT,
        "as published": hdqt(),
        "g nearest for g_x": hdqt(grad_input={"rounding": "nearest"}),
        "w stochastic for g_x": hdqt(grad_input={"weight_rounding": "stochastic"}),
        "g nearest for g_w": hdqt(grad_weight={"rounding": "nearest"}),
        "x nearest for g_w": hdqt(grad_weight={"input_rounding": "nearest"}),
        "all nearest": hdqt(
            grad_input={"rounding": "nearest"}, grad_weight={"rounding": "nearest", "input_rounding": "nearest"}
        ),
    },
    "tiles": {
        **EXACT,
        **{
            f"tile {tile}, {a}-bit sums": hdqt(a, forward={"tile": tile})
            for tile in (16, 32, 64, 128)
            for a in (6, 8, 12)
        },
    },
}
"""``sums``: the accumulators of the paper's title; ``rounding``: which tensors need stochastic rounding, one at a time;
``tiles``: the forward's tile and the width of all accumulators."""
