"""Roofline prices: a kernel takes as long as its bytes or its operations do, whichever is longer.

    seconds = Σ over launches  launch + max(bytes / bandwidth, (operations / rate + rescales / their rate) · waves)

``waves`` is how much longer a launch takes because its last wave leaves processors idle: programs fill the processors
of the device in waves, and a wave takes its time whether it is full or not. The sizes in a ``Traffic`` may be sympy
symbols; the price is then a formula of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from hadamard_fx.kernels.traffic import Expression, Traffic, product_programs
from hadamard_fx.plan import Gemm

from .device_profile import DeviceProfile

__all__ = ["UNIT_OF_DTYPE", "exact_convolution", "exact_product", "exact_traffic", "figures", "launch_time", "seconds"]

UNIT_OF_DTYPE = {
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
    known = figures(profile)
    total: Expression = 0.0
    for traffic in traffics:
        total = total + launch_time(traffic, known)
    return total


def figures(profile: DeviceProfile) -> dict[str, float]:
    """What prices depend on, by the names that formulas have for it: ``"bandwidth"``, ``"rate_int8"`` and so on."""
    return {
        "bandwidth": profile.bandwidth,
        "launch": profile.launch,
        "processors": profile.processors,
        **{f"rate_{unit}": rate for unit, rate in profile.rates.items()},
        **{f"rescales_{unit}": rate for unit, rate in profile.rescales.items()},
    }


def launch_time(traffic: Traffic, known: Mapping[str, Any]) -> Expression:
    """Seconds of one launch.

    Args:
        traffic: with numbers or symbols.
        known: as ``figures``, numbers or symbols; no wave counts where ``"processors"`` is 0.
    """
    by_operations = traffic.operations / known[f"rate_{traffic.unit}"]
    if _is_there(traffic.rescales):
        by_operations += traffic.rescales / known[f"rescales_{traffic.unit}"]
    if _is_there(known["processors"]) and _is_there(traffic.programs):
        waves = _function("ceiling", traffic.programs / known["processors"])
        by_operations *= waves * known["processors"] / traffic.programs
    return known["launch"] + _function("Max", traffic.bytes / known["bandwidth"], by_operations)


def _is_there(value: Expression) -> bool:
    return not isinstance(value, int | float) or value > 0


def _function(name: str, *arguments: Expression) -> Expression:
    """Of numbers by Python, of anything else by sympy, which is slow to import."""
    if all(isinstance(argument, int | float) for argument in arguments):
        return math.ceil(arguments[0]) if name == "ceiling" else max(*arguments)
    import sympy

    return getattr(sympy, name)(*arguments)


def exact_product(
    m: Expression, n: Expression, k: Expression, batch: Expression, itemsize: int, unit: str, factor: int
) -> Traffic:
    """A product as the user wrote it: each operand read once, the result written once.

    Args:
        m, n, k, batch: sizes; ``batch`` products.
        itemsize: bytes of an element of the operands and of the result.
        unit: which unit computes it.
        factor: operations of the unit that one multiplication or addition stands for.
    """
    return Traffic(
        kernel="mm" if batch == 1 else "bmm",
        read=batch * (m + n) * k * itemsize,
        written=batch * m * n * itemsize,
        operations=factor * 2 * batch * m * n * k,
        unit=unit,
        programs=batch * product_programs(m, n, k),
    )


def exact_convolution(
    m: Expression,
    n: Expression,
    k: Expression,
    image: Expression,
    unfolded: str,
    itemsize: int,
    unit: str,
    factor: int,
) -> Traffic:
    """A convolution as the user wrote it: the operations of its unfolded product, and x as it is, not unfolded.

    Args:
        m, n, k: of the unfolded product.
        image: elements of x, or of its gradient.
        unfolded: which matrix of the product stands for x: ``"left"``, ``"right"`` or ``"result"``.
        itemsize, unit, factor: as in ``exact_product``.
    """
    sides = {"left": m * k, "right": n * k, "result": m * n, unfolded: image}
    read = (sides["left"] + sides["right"]) * itemsize
    written, operations, programs = sides["result"] * itemsize, factor * 2 * m * n * k, product_programs(m, n, k)
    return Traffic("convolution", read, written, operations, unit, programs=programs)


def exact_traffic(gemm: Gemm) -> Traffic:
    """The product as the user wrote it, in the operands' dtype.

    float32 is IEEE float32, not tf32. dtypes without a rate of their own are priced as multiples of float32, so that a
    product that nobody may rewrite has a price too.
    """
    size, unit, factor = UNIT_OF_DTYPE.get(gemm.dtype, (4, "float32", 1))
    if gemm.window is not None:
        sizes = gemm.M.hint, gemm.N.hint, gemm.K.hint, gemm.image.hint
        return exact_convolution(*sizes, gemm.unfolded, size, unit, factor)
    return exact_product(gemm.M.hint, gemm.N.hint, gemm.K.hint, gemm.batch.hint, size, unit, factor)
