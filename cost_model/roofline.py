"""Roofline prices: a kernel takes as long as its bytes or its operations do, whichever is longer.

    seconds = Σ over launches  launch + max(bytes / bandwidth, operations / rate of the unit)

The sizes in a ``Traffic`` may be sympy symbols; the price is then a formula of them.
"""

from __future__ import annotations

from collections.abc import Iterable

from hadamard_fx.kernels.traffic import Expression, Traffic
from hadamard_fx.plan import Gemm

from .device_profile import DeviceProfile

__all__ = ["exact_traffic", "seconds"]

_UNIT = {
    "float32": (4, "float32", 1),
    "bfloat16": (2, "bfloat16", 1),
    "float16": (2, "float16", 1),
    "int8": (1, "int8", 1),
    "float8_e4m3fn": (1, "float8", 1),
    "float64": (8, "float32", 2),
    "complex64": (8, "float32", 4),
    "complex128": (16, "float32", 8),
}
"""dtype -> bytes of an element, the unit that prices it, and how many of the unit's operations one stands for."""


def seconds(traffics: Iterable[Traffic], profile: DeviceProfile) -> Expression:
    """Predicted seconds of kernels that run one after the other on ``profile``'s device.

    Returns:
        a float, or a sympy expression where a size is a symbol.
    """
    total: Expression = 0.0
    for traffic in traffics:
        by_bytes = traffic.bytes / profile.bandwidth
        by_operations = traffic.operations / profile.rates[traffic.unit]
        total = total + profile.launch + _longer(by_bytes, by_operations)
    return total


def _longer(left: Expression, right: Expression) -> Expression:
    if isinstance(left, int | float) and isinstance(right, int | float):
        return max(left, right)
    import sympy  # only formulas need it, and it is slow to import

    return sympy.Max(left, right)


def exact_traffic(gemm: Gemm) -> Traffic:
    """The product as the user wrote it: each operand read once, the result written once, in the operands' dtype.

    float32 is IEEE float32, not tf32. dtypes without a rate of their own are priced as multiples of float32, so that a
    product that nobody may rewrite has a price too.
    """
    size, unit, factor = _UNIT.get(gemm.dtype, (4, "float32", 1))
    batch, m, n, k = gemm.batch.hint, gemm.M.hint, gemm.N.hint, gemm.K.hint
    return Traffic(
        kernel="mm" if batch == 1 else "bmm",
        read=batch * (m + n) * k * size,
        written=batch * m * n * size,
        operations=factor * gemm.flops,
        unit=unit,
    )
