"""Options: the default of each, what it may hold, and the rules that overrides make of it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from .errors import OptionError, OverrideError, SchemeError
from .plan import Role
from .profiles import DEFAULT_SCHEMES, PROFILES, Profile, did_you_mean, parse_scheme
from .scheme import Scheme

__all__ = ["DEFAULTS", "PRODUCTS", "READERS", "Choice", "Override", "to_json"]

DEFAULTS: dict[str, Any] = {
    "profile": "auto",
    "bits": None,
    "overrides": {},
    "forward": None,
    "grad_input": None,
    "grad_weight": None,
    "roll_loops": None,
    "objective": "time",
    "memory_budget": 1.0,
    "max_error": None,
    "count_saturation": False,
    "device_profile": None,
    "calibration": None,
    "inductor": {},
    "passes": {},
}
"""Every option with its default. ``None``: as the profile says, or as the device at hand is."""

OBJECTIVES = {"time": 0.0, "memory": 1.0}
"""Words for the share of memory in what is minimised."""

PRODUCTS = {str(role): role for role in DEFAULT_SCHEMES}
"""Options that are the scheme of one product of a linear layer."""


@dataclass(frozen=True)
class Choice:
    """The schemes that one product may use.

    Attributes:
        schemes: in the order of preference.
        priced: the cheapest is taken, exact among the candidates; otherwise the first legal one, whatever it costs.
        origin: for the report: ``"profile 'hot'"``.
        written: the user wrote the scheme, in an option or an override: a calibration leaves it as it is.
        refused: (scheme, why) of what a calibration forbids.
        notes: (scheme, what a calibration made of it), for the reason.
    """

    schemes: tuple[Scheme, ...]
    priced: bool
    origin: str
    written: bool = False
    refused: tuple[tuple[Scheme, str], ...] = ()
    notes: tuple[tuple[Scheme, str], ...] = ()

    def note(self, scheme: Scheme) -> str:
        """What the calibration made of a scheme, ``""`` for nothing."""
        return dict(self.notes).get(scheme, "")


@dataclass(frozen=True)
class Override:
    """Other rules for the layers whose whole name matches ``pattern``: a profile, or schemes for single products."""

    pattern: str
    profile: Profile | None = None
    forward: Scheme | None = None
    grad_input: Scheme | None = None
    grad_weight: Scheme | None = None

    def matches(self, layer: str) -> bool:
        """Whether the pattern is that of a layer, or of the module that is called several times: ``fc`` of ``fc#1``."""
        return any(re.fullmatch(self.pattern, name) for name in (layer, layer.partition("#")[0]))

    def choice(self, role: Role) -> Choice | None:
        """None where the override says nothing about ``role``."""
        origin = f"override '{self.pattern}'"
        if self.profile is not None:
            return Choice(self.profile.schemes(role), self.profile.priced, f"{origin}: profile {self.profile.name!r}")
        scheme: Scheme | None = getattr(self, str(role), None)
        return None if scheme is None else Choice((scheme,), False, origin, written=True)


def _read_profile(value: object, where: str) -> Profile:
    if not isinstance(value, str):
        raise OptionError(f"{where}: expected the name of a profile, got {value!r}; known: {', '.join(PROFILES)}")
    if value not in PROFILES:
        raise OptionError(f"{where}: unknown profile {value!r};{did_you_mean(value, PROFILES)}")
    return PROFILES[value]


def _read_overrides(value: object, where: str) -> tuple[Override, ...]:
    if not isinstance(value, Mapping):
        raise OverrideError(f"{where}: expected a table of layer patterns to rules, got {value!r}")
    return tuple(_read_override(pattern, rule, where) for pattern, rule in value.items())


def _read_override(pattern: object, rule: object, where: str) -> Override:
    if not isinstance(pattern, str):
        raise OverrideError(f"{where}: the pattern {pattern!r} must be text")
    try:
        re.compile(pattern)
    except re.error as error:
        raise OverrideError(f"{where}: {pattern!r} is no regular expression: {error}") from None
    where = f"{where}, override {pattern!r}"
    if isinstance(rule, str):
        if rule not in PROFILES:
            raise OverrideError(f"{where}: unknown profile {rule!r};{did_you_mean(rule, PROFILES)}")
        return Override(pattern, profile=PROFILES[rule])
    if not isinstance(rule, Mapping) or not rule:
        rules = '"exact", another profile, or {"forward": …, "grad_input": …, "grad_weight": …}'
        raise OverrideError(f"{where}: expected {rules}, got {rule!r}")
    for role in rule:
        if role not in PRODUCTS:
            raise OverrideError(f"{where}: unknown product {role!r};{did_you_mean(str(role), PRODUCTS)}")
    schemes = {role: parse_scheme(rule[role], PRODUCTS[role], f"{where}, {role!r}") for role in rule}
    return Override(pattern, None, **schemes)


def _read_product(role: Role) -> Callable[[object, str], Scheme | None]:
    return lambda value, where: None if value is None else parse_scheme(value, role, where)


def _read_device_profile(value: object, where: str) -> str | None:
    if value is None or (isinstance(value, str) and value):
        return value
    raise OptionError(f"{where}: expected the name of a device profile or the path of a JSON file, got {value!r}")


def _read_calibration(value: object, where: str) -> object:
    """A path, or a ``Calibration``, which these words know by its digest only. What a file holds is read later."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if value is None or (isinstance(value, str) and value) or hasattr(value, "digest"):
        return value
    raise OptionError(
        f"{where}: expected what hadamard_fx.calibrate returned, or the path of the file that it was saved to, "
        f"got {value!r}"
    )


def _read_objective(value: object, where: str) -> float:
    """The share of memory in what is minimised."""
    if isinstance(value, str) and value in OBJECTIVES:
        return OBJECTIVES[value]
    if not _is_number(value) or not 0 <= value <= 1:
        words = " or ".join(f'"{word}"' for word in OBJECTIVES)
        raise OptionError(f"{where}: expected {words}, or a number from 0 (time) to 1 (memory), got {value!r}")
    return float(value)


def _read_memory_budget(value: object, where: str) -> float:
    if not _is_number(value) or not 0 < value <= 1:
        raise OptionError(
            f"{where}: expected the largest share of the bytes that exact keeps for the backward, above 0 and at most "
            f"1, got {value!r}"
        )
    return float(value)


def _read_max_error(value: object, where: str) -> float | None:
    if value is None:
        return None
    if not _is_number(value) or not 0 <= value < float("inf"):
        raise OptionError(
            f"{where}: expected the largest relative error of a product, 0.05 for instance, got {value!r}"
        )
    return float(value)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_bits(value: object, where: str) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise OptionError(f"{where}: expected the number of bits of the profile's schemes, 5 for instance, got {value!r}")


def _read_switch(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"{where}: expected true or false, got {value!r}")
    return value


def _read_inductor(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise OptionError(f'{where}: expected a table such as {{"max_autotune": true}}, got {value!r}')
    return dict(value)


def _read_passes(value: object, where: str) -> dict[str, object]:
    """Which passes exist, and their fields, is known where they are: a graph is compiled before those are checked."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise OptionError(f'{where}: expected a table such as {{"keep-ends-exact": {{"count": 2}}}}, got {value!r}')
    for name, fields in value.items():
        if not isinstance(fields, Mapping | bool):
            raise OptionError(f"{where}, {name!r}: expected a table of the pass's fields, or false, got {fields!r}")
    return dict(value)


READERS: dict[str, Callable[[object, str], Any]] = {
    "profile": _read_profile,
    "bits": _read_bits,
    "overrides": _read_overrides,
    **{name: _read_product(role) for name, role in PRODUCTS.items()},
    "roll_loops": lambda value, where: None if value is None else _read_switch(value, where),
    "objective": _read_objective,
    "memory_budget": _read_memory_budget,
    "max_error": _read_max_error,
    "count_saturation": _read_switch,
    "device_profile": _read_device_profile,
    "calibration": _read_calibration,
    "inductor": _read_inductor,
    "passes": _read_passes,
}


def to_json(key: str, value: object) -> Any:
    """``value`` without Python objects, so that it can be stored."""
    if key == "calibration" and value is not None:
        return os.fspath(value) if isinstance(value, str | os.PathLike) else f"calibration {value.digest()[:16]}"  # type: ignore[attr-defined]
    try:
        return json.loads(json.dumps(value, default=lambda item: item.to_json()))
    except (TypeError, AttributeError, ValueError):
        error = SchemeError if key in PRODUCTS else OptionError
        raise error(f"option {key!r} holds a value that JSON cannot: {value!r}") from None
