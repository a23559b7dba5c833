"""Schemes: the ways to compute one product. Frozen values with a JSON form.

Prices and rewrites live in ``passes/schemes``, a file each. Imports nothing of the project but the errors.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from .errors import SchemeError

__all__ = ["CARRIERS", "ROUNDINGS", "SIGNS", "Exact", "Hadamard", "LowRank", "Scheme"]


def _check_power_of_two(name: str, order: int) -> None:
    if order < 2 or order > 128 or order & (order - 1):
        raise SchemeError(f"{name}: order must be a power of two from 2 to 128, got {order}")


def _check_choice(name: str, field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SchemeError(f"{name}: {field} must be one of {', '.join(allowed)}, got {value!r}")


ROUNDINGS = ("nearest", "stochastic", "pseudo_stochastic")
SIGNS = ("random", "none")
CARRIERS = ("auto", "int8", "float8_e4m3")


class Scheme:
    """How one product is computed. A subclass is a frozen dataclass with a class attribute ``kind``.

    Declaring a subclass registers its ``kind``, so that a new scheme is one new file.
    """

    kind: ClassVar[str]
    kinds: ClassVar[dict[str, type[Scheme]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        known = Scheme.kinds.get(cls.kind)
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise SchemeError(f"two schemes call themselves {cls.kind!r}: {known.__qualname__} and {cls.__qualname__}")
        Scheme.kinds[cls.kind] = cls

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, **dataclasses.asdict(self)}  # type: ignore[call-overload]

    @staticmethod
    def from_json(data: dict[str, Any]) -> Scheme:
        """The scheme that ``to_json`` wrote.

        Raises:
            SchemeError: unknown kind, or parameters that the scheme refuses.
        """
        fields = dict(data)
        kind = fields.pop("kind", None)
        if kind not in Scheme.kinds:
            raise SchemeError(f"unknown scheme {kind!r}; known: {', '.join(sorted(Scheme.kinds))}")
        try:
            return Scheme.kinds[kind](**fields)
        except TypeError as error:
            raise SchemeError(f"scheme {kind!r}: {error}") from None


@dataclass(frozen=True)
class Exact(Scheme):
    """The product as the user wrote it."""

    kind: ClassVar[str] = "exact"

    def __str__(self) -> str:
        return "exact"


@dataclass(frozen=True)
class Hadamard(Scheme):
    """HQ: both operands transformed along the contracted axis, then quantised (HOT, section 3; full rank).

    Attributes:
        bits: of both operands, 2..8.
        order: of the block transform I ⊗ H.
        scale: ``"token"`` (one per row of g_y) or ``"tensor"``; the weight has one per column or one, likewise.
        rounding: of g_y; the weight is rounded to nearest.
        carrier: the type that holds the integers. FP8 E4M3 holds 4-bit integers exactly; ``"auto"`` takes the faster
            one of the device.
        group: columns of g_y that share a scale, a multiple of the order and of 16, 0 for all, None for the device's
            preference. The product rescales each group's partial sum; a kernel that reads a tile of g_y once can make
            such scales.
    """

    kind: ClassVar[str] = "hadamard"
    bits: int = 4
    order: int = 16
    scale: str = "token"
    rounding: str = "stochastic"
    carrier: str = "auto"
    group: int | None = None

    def __post_init__(self) -> None:
        _check_power_of_two("hadamard", self.order)
        _check_choice("hadamard", "scale", self.scale, ("token", "tensor"))
        _check_choice("hadamard", "rounding", self.rounding, ROUNDINGS)
        _check_choice("hadamard", "carrier", self.carrier, CARRIERS)
        if not 2 <= self.bits <= 8:
            raise SchemeError(f"hadamard: bits must be from 2 to 8, got {self.bits}")
        if self.carrier == "float8_e4m3" and self.bits > 4:
            raise SchemeError(f"hadamard: float8_e4m3 holds at most 4 bits exactly, not {self.bits}; use int8")
        unit = max(self.order, 16)
        if self.group is not None and (self.group < 0 or self.group % unit):
            raise SchemeError(f"hadamard: group must be 0 or a multiple of {unit}, got {self.group}")
        if self.group and self.scale != "token":
            raise SchemeError(f"hadamard: groups of columns need scales per token, not per {self.scale}")

    def __str__(self) -> str:
        carrier = f" in {self.carrier}" if self.carrier == "float8_e4m3" else ""
        group = f" and {self.group} columns" if self.group else ""
        return f"hadamard-{self.order} {self.bits} bits{carrier}, per {self.scale}{group}, {self.rounding}"


@dataclass(frozen=True)
class LowRank(Scheme):
    """HLA: g_w = (Ĥ g_y)ᵀ (Ĥ x), Ĥ the ``rank`` lowest sequencies of each order-n block of tokens (HOT, section 3).

    Attributes:
        rank: kept rows of each block, 1..order; ``rank == order`` is a full transform.
        order: tokens of one block.
        bits: of both operands, 2..8.
        scale: ``"channel"`` (one per row of g_yᵀ and per column of x) or ``"tensor"``.
        rounding: of g_y; x is rounded to nearest, so that the forward draws no random number.
        group: tokens that share a scale, a multiple of the order, 0 for all, None for the device's preference. The
            product rescales each group's partial sum, as law 2 of the algorithms asks; a group that fits the fast
            memory is read only once.
        signs: of the tokens of both operands, before the cut. ``"random"`` makes g_w unbiased: what is cut off turns
            into noise like that of a batch of rank/order of the tokens. ``"none"`` is the low-pass filter that HOT
            publishes: less noise, but g_w misses what neighbouring tokens do not have in common. Of no effect at full
            rank.
    """

    kind: ClassVar[str] = "low_rank"
    rank: int = 8
    order: int = 16
    bits: int = 8
    scale: str = "channel"
    rounding: str = "stochastic"
    group: int | None = None
    signs: str = "random"

    def __post_init__(self) -> None:
        _check_power_of_two("low_rank", self.order)
        _check_choice("low_rank", "signs", self.signs, SIGNS)
        _check_choice("low_rank", "scale", self.scale, ("channel", "tensor"))
        _check_choice("low_rank", "rounding", self.rounding, ROUNDINGS)
        if not 1 <= self.rank <= self.order:
            raise SchemeError(f"low_rank: rank must be from 1 to the order {self.order}, got {self.rank}")
        if not 2 <= self.bits <= 8:
            raise SchemeError(f"low_rank: bits must be from 2 to 8, got {self.bits}")
        if self.group is not None and (self.group < 0 or self.group % self.order):
            raise SchemeError(f"low_rank: group must be 0 or a multiple of the order {self.order}, got {self.group}")

    @property
    def signed(self) -> bool:
        """Tokens get random signs; they would cancel where nothing is cut."""
        return self.signs == "random" and self.rank < self.order

    def __str__(self) -> str:
        group = f" and {self.group} tokens" if self.group else ""
        signs = ", random signs" if self.signed else ""
        return f"rank {self.rank} of {self.order}, {self.bits} bits, per {self.scale}{group}, {self.rounding}{signs}"
