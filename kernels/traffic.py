"""What a kernel moves and computes, written out as algebra on its sizes.

A kernel is a record of bytes and operations; its price is a sum over such records (``hadamard_fx.cost_model``). The
sizes may be ints or sympy symbols, so a traffic function uses nothing but ``+``, ``*`` and ``//`` on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["OWN_RATES", "SCALE_BYTES", "UNITS", "Expression", "Traffic", "ceil_div", "padded", "product_programs"]

Expression: TypeAlias = Any
"""An int or a sympy expression: whatever the sizes were."""

UNITS = ("vector", "int8", "float8", "bfloat16", "float16", "float32")
"""The units that do the operations: ``vector`` for everything that is no matrix product, else the operands' type."""

OWN_RATES = ("one_read",)
"""Kernels that reach another rate than their unit: a device may have a figure for each."""

SCALE_BYTES = 4
"""Bytes of one float32 scale."""

ALIGNMENT = 16
"""The contracted axis of a quantised operand is a multiple of this (the bulk copy engine wants 16-byte strides)."""


@dataclass(frozen=True)
class Traffic:
    """One launch of a kernel.

    Attributes:
        kernel: name of the kernel.
        read: bytes read from device memory, each input counted once.
        written: bytes written to device memory.
        operations: multiplications and additions (a product M, N, K is 2·M·N·K).
        unit: which unit does them, one of ``UNITS`` or ``OWN_RATES``.
        rescales: partial sums that are multiplied by a scale, as products in groups do beside their operations.
        programs: pieces of work that run apart from each other, 0 where they are too many to count: the last wave of a
            few leaves processors idle.
    """

    kernel: str
    read: Expression
    written: Expression
    operations: Expression
    unit: str
    rescales: Expression = 0
    programs: Expression = 0

    def __post_init__(self) -> None:
        known = (*UNITS, *OWN_RATES)
        if self.unit not in known:
            raise ValueError(f"traffic of {self.kernel!r}: unit must be one of {', '.join(known)}, got {self.unit!r}")

    @property
    def bytes(self) -> Expression:
        """Bytes that cross the memory bus, both ways."""
        return self.read + self.written


def ceil_div(size: Expression, by: int) -> Expression:
    """⌈size / by⌉."""
    return (size + (by - 1)) // by


def padded(size: Expression) -> Expression:
    """``size`` rounded up to ``ALIGNMENT``."""
    return ceil_div(size, ALIGNMENT) * ALIGNMENT


def product_programs(m: Expression, n: Expression, k: Expression) -> Expression:
    """The pieces that a product M, N, K is split into: tiles of 128 × 256 of the result, cut along a long K.

    What the kernels of this project and of the vendors' libraries do, roughly; each tunes the sizes by itself.
    """
    return ceil_div(m, 128) * ceil_div(n, 256) * ceil_div(k, 2048)
