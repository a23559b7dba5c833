"""What is compared: how products are computed, as options of the backend."""

from __future__ import annotations

from typing import Any

from hadamard_fx.errors import HadamardError

__all__ = ["DEFAULT", "ContenderError", "contender", "hdqt", "label"]

DEFAULT = "exact,hdqt:8,luq,hdqt:4"
ROLES = ("forward", "grad_input", "grad_weight")


class ContenderError(HadamardError, ValueError):
    """A contender has an unknown name."""


def hdqt(accumulator_bits: int = 8, bits: int = 4, **fields: dict[str, Any]) -> dict[str, Any]:
    """The options of the profile with other numbers than the published ones.

    Args:
        accumulator_bits, bits: of all three products.
        fields: further fields of single products: ``forward={"tile": 64}``.
    """
    numbers = {"bits": bits, "accumulator_bits": accumulator_bits}
    schemes = {role: {"kind": f"saturating_{role}", **numbers, **fields.get(role, {})} for role in ROLES}
    return {"profile": "hdqt", **schemes}


def contender(name: str) -> dict[str, Any]:
    """The options of ``exact``, ``luq``, or ``hdqt:A`` (4-bit operands and sums of A bits).

    Raises:
        ContenderError: it is none of these.
    """
    kind, _, bits = name.partition(":")
    if kind == "hdqt" and bits.isdigit() and 4 <= int(bits) <= 32:
        return hdqt(int(bits))
    if name == "luq":
        import examples.luq  # noqa: F401  registers the scheme

        return {"profile": "exact", **{role: {"kind": "luq"} for role in ROLES}}
    if name != "exact":
        raise ContenderError(f"contender {name!r}: write exact, luq, or hdqt:A with sums of A = 4 to 32 bits, hdqt:8")
    return {"profile": "exact"}


def label(name: str) -> str:
    """For a person."""
    kind, _, bits = name.partition(":")
    return f"hdqt, {bits}-bit sums" if kind == "hdqt" else name
