"""What a kernel moves and computes, written out as algebra on its sizes.

A kernel is a record of bytes and operations; its price is a sum over such records (``hadamard_fx.cost_model``). The
sizes may be ints or sympy symbols, so a traffic function uses nothing but ``+``, ``*`` and ``//`` on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = ["SCALE_BYTES", "UNITS", "Expression", "Traffic", "ceil_div", "padded"]

Expression: TypeAlias = Any
"""An int or a sympy expression: whatever the sizes were."""

UNITS = ("vector", "int8", "float8", "bfloat16", "float16", "float32")
"""The units that do the operations: ``vector`` for everything that is no matrix product, else the operands' type."""

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
        unit: which unit does them, one of ``UNITS``.
    """

    kernel: str
    read: Expression
    written: Expression
    operations: Expression
    unit: str

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"traffic of {self.kernel!r}: unit must be one of {', '.join(UNITS)}, got {self.unit!r}")

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
