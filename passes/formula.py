"""The price of a product as algebra: what its kernels declare, in symbols, under the roofline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hadamard_fx.cost_model.device_profile import PRODUCTS, DeviceProfile
from hadamard_fx.cost_model.roofline import figures, launch_time
from hadamard_fx.cost_model.work import Sizes
from hadamard_fx.errors import SchemeError
from hadamard_fx.kernels.traffic import OWN_RATES, UNITS
from hadamard_fx.plan import Gemm, Scheme, Size

from .unfolding import works_of

__all__ = ["Formula", "formula"]


@dataclass(frozen=True)
class Formula:
    """Predicted seconds of one product under one scheme, before what it shares with others is split.

    Attributes:
        expression: a sympy expression in M, N, K (B where the product is batched, X elements of
            a convolution's x) and in the figures of a device:
            ``launch`` (s), ``bandwidth`` (bytes/s), ``rate_int8`` (operations/s) and so on.
        sizes: M, N, K, B and X: numbers, with the expressions that they stand for where the shape is dynamic.
    """

    expression: Any
    sizes: tuple[tuple[str, Size], ...]

    def __str__(self) -> str:
        where = ", ".join(f"{name} = {size}" for name, size in self.sizes)
        return f"seconds = {self.expression}\nwhere {where}"

    def in_symbols(self) -> Any:
        """The expression in the symbols of dynamic shapes: M is replaced by ``s27*s77``; static sizes by numbers."""
        import sympy

        def extent(size: Size) -> Any:
            if not size.symbol:
                return sympy.Integer(size.hint)
            names = sympy.sympify(size.symbol).free_symbols
            return sympy.sympify(size.symbol).subs({name: _symbol(name.name) for name in names})

        return self.expression.subs({_symbol(name): extent(size) for name, size in self.sizes}, simultaneous=True)

    def seconds(self, profile: DeviceProfile) -> float:
        """The number on a device; a dynamic extent counts by its hint."""
        known = {_symbol(name): value for name, value in figures(profile).items()}
        return float(self.expression.subs({**known, **{_symbol(name): size.hint for name, size in self.sizes}}))


def formula(scheme: Scheme, gemm: Gemm, *, waves: bool | None = None) -> Formula:
    """The price of a product under a scheme that is refined for the device.

    Args:
        scheme: as a decision holds it.
        gemm: its sizes; its role and dtype decide which kernels run.
        waves: the last wave of a launch counts; by default on CUDA devices.

    Raises:
        SchemeError: the scheme's rule states a price only, and no launches.
    """
    m, n, k = (_symbol(name) for name in "MNK")
    batch = 1 if gemm.batch == Size(1) else _symbol("B")
    image = 0 if gemm.window is None else _symbol("X")
    works = works_of(scheme, gemm, Sizes(m, n, k, batch, *((m, n) if gemm.gradient == "left" else (n, m)), image))
    if not works:
        raise SchemeError(f"the rule of scheme {scheme.kind!r} defines price, not works: it has no formula")
    names = [*(f"rate_{unit}" for unit in (*UNITS, *OWN_RATES)), *(f"rescales_{unit}" for unit in PRODUCTS)]
    known: dict[str, Any] = {name: _symbol(name) for name in ("launch", "bandwidth", "processors", *names)}
    if not (gemm.device == "cuda" if waves is None else waves):
        known["processors"] = 0
    total = sum(launch_time(work.launch.traffic, known) for work in works if work.launch is not None)
    sizes = {"M": gemm.M, "N": gemm.N, "K": gemm.K, **({"B": gemm.batch} if gemm.batch != Size(1) else {})}
    if gemm.window is not None:
        sizes["X"] = gemm.image
    return Formula(_readable(total), tuple(sizes.items()))


def _symbol(name: str) -> Any:
    import sympy

    return sympy.Symbol(name, positive=True, integer=name in "MNKBX" or None)


def _readable(expression: Any) -> Any:
    """⌊(x + n − 1) / n⌋ of whole numbers is ⌈x / n⌉."""
    import sympy

    def rounded_up(argument: Any) -> Any:
        constant, rest = argument.as_coeff_Add()
        if constant.is_Rational and constant == 1 - sympy.Rational(1, constant.q):
            return sympy.ceiling(rest)
        return sympy.floor(argument)

    return expression.replace(sympy.floor, rounded_up)
