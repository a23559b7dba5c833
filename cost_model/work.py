"""What a scheme does for a product: launches of kernels, some of which it shares with other products.

A launch is a kernel's own record of reads, writes and operations (``traffic``) at given sizes. The record is turned
into a sympy expression once for each kernel and its settings, and that into a Python function; a price is a call of it.
With symbols for the sizes the same launches give a formula.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from hadamard_fx.kernels.traffic import Expression, Traffic
from hadamard_fx.plan import Gemm

from .device_profile import DeviceProfile
from .roofline import figures, launch_time

__all__ = ["Launch", "Sizes", "Work", "launch", "launch_seconds", "seconds_of", "sizes_of"]


@dataclass(frozen=True)
class Sizes:
    """The extents of a product, numbers or sympy symbols.

    Attributes:
        m, n, k, batch: of the product.
        gradient, saved: the axis of the gradient, and of the other operand, that is not contracted.
        image: elements of what a convolution unfolds, 0 elsewhere.
    """

    m: Expression
    n: Expression
    k: Expression
    batch: Expression
    gradient: Expression
    saved: Expression
    image: Expression = 0


def sizes_of(gemm: Gemm) -> Sizes:
    """The numbers; a symbolic extent counts by its hint."""
    m, n, k, batch = gemm.M.hint, gemm.N.hint, gemm.K.hint, gemm.batch.hint
    return Sizes(m, n, k, batch, *((m, n) if gemm.gradient == "left" else (n, m)), gemm.image.hint)


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel.

    Attributes:
        kernel: its ``traffic`` function.
        sizes: its first arguments, numbers or symbols.
        settings: the rest, as (name, value).
    """

    kernel: Callable[..., Traffic]
    sizes: tuple[Expression, ...]
    settings: tuple[tuple[str, Any], ...] = ()

    @property
    def traffic(self) -> Traffic:
        return self.kernel(*self.sizes, **dict(self.settings))


def launch(kernel: Callable[..., Traffic], *sizes: Expression, **settings: Any) -> Launch:
    """``Launch`` in the form of a call of the kernel's ``traffic``."""
    return Launch(kernel, sizes, tuple(settings.items()))


@dataclass(frozen=True)
class Work:
    """A launch on behalf of a product.

    Attributes:
        launch: None where a tensor is kept and nothing is computed.
        shared: products whose work has the same key do it once for all of them; None: it is this product's own.
        kept: bytes of its result that live between forward and backward.
        reads_gradient: ``"rows"`` or ``"tokens"`` where it makes that form of the incoming gradient.
    """

    launch: Launch | None
    shared: Hashable = None
    kept: Expression = 0
    reads_gradient: str = ""


def seconds_of(works: Iterable[Work], profile: DeviceProfile) -> float:
    """Predicted seconds of all launches."""
    return sum(launch_seconds(work.launch, profile) for work in works if work.launch is not None)


def launch_seconds(item: Launch, profile: DeviceProfile) -> float:
    """Predicted seconds of one launch of known sizes."""
    names, values = _figures(profile)
    return _priced(item, names, values)


@functools.lru_cache(maxsize=8)
def _figures(profile: DeviceProfile) -> tuple[tuple[str, ...], tuple[float, ...]]:
    known = figures(profile)
    return tuple(known), tuple(known.values())


@functools.lru_cache(maxsize=2**14)
def _priced(item: Launch, names: tuple[str, ...], values: tuple[float, ...]) -> float:
    price = _compiled(item.kernel, len(item.sizes), item.settings, names, values[names.index("processors")] > 0)
    return float(price(*item.sizes, *values))


@functools.cache
def _compiled(
    kernel: Callable[..., Traffic],
    count: int,
    settings: tuple[tuple[str, Any], ...],
    names: tuple[str, ...],
    waves: bool,
) -> Callable[..., float]:
    """Sizes and figures ⇒ seconds."""
    import sympy  # with torch's compiler it is there; without, an import of this package should not wait for it

    arguments = list(inspect.signature(kernel).parameters)[:count]
    sizes = [sympy.Symbol(name, integer=True, positive=True) for name in arguments]
    known: dict[str, Any] = {name: sympy.Symbol(f"{name}_", positive=True) for name in names}
    expression = launch_time(kernel(*sizes, **dict(settings)), known if waves else {**known, "processors": 0})
    compiled: Callable[..., float] = sympy.lambdify([*sizes, *known.values()], expression, modules="math")
    return compiled
