"""Figures of a device profile's JSON: a value with its unit, its kind and its source, read with care."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hadamard_fx.errors import OptionError

__all__ = ["KINDS", "entry", "figure", "figure_or", "preference"]

KINDS = ("measured", "datasheet", "derived")

_PREFIX = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_SI = {
    "bandwidth": {f"{prefix}B/s": factor for prefix, factor in _PREFIX.items()},
    "rate": {f"{prefix}OP/s": factor for prefix, factor in _PREFIX.items()},
    "launch": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9},
    "count": {"processors": 1.0},
}


def entry(data: Mapping[str, Any], key: str, kind: type) -> Any:
    """``data[key]``, which must be there and of type ``kind``."""
    if key not in data:
        raise OptionError(f"{key!r} is missing")
    value = data[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise OptionError(f"{key!r} must be of type {kind.__name__}, got {value!r}")
    return value


def preference(data: Mapping[str, Any], key: str, kind: type, sources: dict[str, str]) -> Any:
    """One of the preferences, a value of type ``kind``."""
    given = entry(entry(data, "preferences", dict), key, dict)
    sources[key] = _source(given, key)
    try:
        return entry(given, "value", kind)
    except OptionError as error:
        raise OptionError(f"{key!r}: {error}") from None


def _source(given: Mapping[str, Any], key: str) -> str:
    kind, source = entry(given, "kind", str), entry(given, "source", str)
    if kind not in KINDS or not source:
        raise OptionError(f"{key!r}: kind must be one of {', '.join(KINDS)}, and the source must be named")
    return f"{kind}: {source}"


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def figure(
    data: Mapping[str, Any], key: str, dimension: str, threads: int, sources: dict[str, str], prefix: str = ""
) -> float:
    """One figure in SI units.

    Args:
        data: the table that holds it.
        dimension: of its unit: ``"bandwidth"``, ``"rate"``, ``"launch"`` or ``"count"``.
        sources: where its source is noted.
        prefix: of the key there.

    Raises:
        OptionError: it is missing, or makes no sense.
    """
    given = entry(data, key, dict)
    unit, per = entry(given, "unit", str), given.get("per", "device")
    if unit not in _SI[dimension]:
        raise OptionError(f"{key!r}: unit must be one of {', '.join(_SI[dimension])}, got {unit!r}")
    if per not in ("core", "device"):
        raise OptionError(f'{key!r}: "per" must be "core" or "device", got {per!r}')
    value: Any = given.get("value")
    ceiling: Any = given.get("ceiling", float("inf"))
    if not _positive(value) or value == float("inf") or not _positive(ceiling):
        raise OptionError(f"{key!r}: value and ceiling must be positive numbers, got {value!r} and {ceiling!r}")
    sources[prefix + key] = _source(given, key)
    return min(float(value) * (threads if per == "core" else 1), float(ceiling)) * _SI[dimension][unit]


def figure_or(
    data: Mapping[str, Any],
    key: str,
    dimension: str,
    threads: int,
    sources: dict[str, str],
    otherwise: float,
    derived: str,
    prefix: str = "",
) -> float:
    """A figure that a profile may leave out; ``derived`` says what ``otherwise`` is."""
    if key in data:
        return figure(data, key, dimension, threads, sources, prefix)
    sources[prefix + key] = f"derived: {derived}"
    return otherwise
