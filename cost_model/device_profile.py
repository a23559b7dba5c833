"""Device profiles: what a device can do, each figure with its unit and its source.

A profile is one JSON file. Those of ``cost_model/profiles`` come with the package; ``options={"device_profile": PATH}``
takes another. Every figure is an object, for instance

    "bandwidth": {"value": 4.25, "unit": "TB/s", "kind": "measured", "source": "a copy, read and write counted"}

``kind`` is ``measured``, ``datasheet`` or ``derived``. A figure with ``"per": "core"`` is multiplied by the number of
threads, up to ``"ceiling"`` (same unit) where there is one. Decisions follow from these figures and from nothing that
is measured while compiling, so that the same model gets the same plan in every process.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hadamard_fx.errors import DeviceError, HadamardError, OptionError
from hadamard_fx.kernels.traffic import UNITS
from hadamard_fx.scheme import CARRIERS

from .cpu_flags import cpu_flags
from .tuned import path_of

__all__ = [
    "PROFILE_FOLDER",
    "SCHEMA",
    "VERSION",
    "DeviceProfile",
    "bundled_profile",
    "known_profiles",
    "load_profile",
    "profile_for",
]

PROFILE_FOLDER = Path(__file__).resolve().parent / "profiles"
SCHEMA, VERSION = "hadamard_fx.device_profile", 1
KINDS = ("measured", "datasheet", "derived")

_PREFIX = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_SI = {
    "bandwidth": {f"{prefix}B/s": factor for prefix, factor in _PREFIX.items()},
    "rate": {f"{prefix}OP/s": factor for prefix, factor in _PREFIX.items()},
    "launch": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9},
}


@dataclass(frozen=True)
class DeviceProfile:
    """What one device can do, in SI units, for the number of threads at hand.

    Attributes:
        name: of the profile; it says so where the profile is only a stand-in for the device.
        device_type: ``"cuda"`` or ``"cpu"``.
        matches: how it recognises a device: a regular expression for the CUDA device's name, or the CPU flags that must
            all be present, separated by spaces. Empty: any device of the type (the generic profile).
        bandwidth: bytes/s to and from memory, reads and writes added up.
        rates: operations/s of each unit of ``kernels.traffic.UNITS`` (a multiply-add is two operations).
        launch: seconds that every kernel costs besides its work.
        carrier: the type that holds 4-bit integers fastest: ``"int8"`` or ``"float8_e4m3"``.
        token_group, column_group: tokens that share a scale in ``LowRank``, and columns in the gradient's ``Hadamard``,
            where the operands have 16 bits; 0 for all.
        sources: figure -> ``"measured: …"``, ``"datasheet: …"`` or ``"derived: …"``.
    """

    name: str
    device_type: str
    matches: str
    bandwidth: float
    rates: Mapping[str, float] = field(hash=False)
    launch: float
    carrier: str
    token_group: int
    column_group: int
    sources: Mapping[str, str] = field(default_factory=dict, hash=False)

    def digest(self) -> str:
        """A hash of everything that prices depend on; the same in every process with as many threads."""
        fields = dataclasses.asdict(self)
        del fields["sources"]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def profile_for(device_type: str, name: str | None = None) -> DeviceProfile:
    """The profile that prices a graph on a device: the one that ``hadamard-fx tune`` measured here, else a bundled one.

    Args:
        device_type: ``"cuda"`` (the current device is asked for its name) or ``"cpu"`` (its flags are read).
        name: a profile's name, or the path of a JSON file, instead. A profile of another device is legal: it shows the
            decisions that would be taken there.

    Raises:
        OptionError: ``name`` is no profile and no readable file of the right schema.
        DeviceError: no profile describes devices of that type.
    """
    if name is not None:
        return _named(name)
    own = _tuned(device_type)
    return load_profile(own) if own is not None else bundled_profile(device_type)


def _tuned(device_type: str) -> Path | None:
    """The file that was measured on this machine's device, if there is one."""
    try:
        path = path_of(device_type)
    except DeviceError:  # no such device here; or of a type that nothing measures
        return None
    return path if path.exists() else None


def bundled_profile(device_type: str) -> DeviceProfile:
    """The best of the profiles that come with the package for a device of this machine.

    Raises:
        DeviceError: no profile describes devices of that type.
    """
    candidates = [p for p in map(load_profile, _bundled().values()) if p.device_type == device_type]
    if not candidates:
        types = sorted({p.device_type for p in map(load_profile, _bundled().values())})
        raise DeviceError(
            f"no device profile describes devices of type {device_type!r} (known: {', '.join(types)}); "
            f'write one and name it: options={{"device_profile": "PATH.json"}}'
        )
    found = _cuda_profile(candidates) if device_type == "cuda" else _flags_profile(candidates, cpu_flags())
    return found


def _cuda_profile(candidates: list[DeviceProfile]) -> DeviceProfile:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "absent device"
    for profile in candidates:
        if profile.matches and re.search(profile.matches, device):
            return profile
    return dataclasses.replace(_generic(candidates), name=f"{_generic(candidates).name} (no profile of {device})")


def _flags_profile(candidates: list[DeviceProfile], flags: frozenset[str]) -> DeviceProfile:
    """The profile that asks for the most flags among those whose flags are all present."""
    fitting = [profile for profile in candidates if flags.issuperset(profile.matches.split())]
    return max(fitting, key=lambda profile: len(profile.matches.split()), default=_generic(candidates))


def _generic(candidates: list[DeviceProfile]) -> DeviceProfile:
    return next(profile for profile in candidates if not profile.matches)


def known_profiles() -> tuple[str, ...]:
    """Names of the profiles that come with the package."""
    return tuple(_bundled())


@functools.cache
def _bundled() -> dict[str, Path]:
    return {path.stem: path for path in sorted(PROFILE_FOLDER.glob("*.json"))}


def _named(name: str) -> DeviceProfile:
    if name in _bundled():
        return load_profile(_bundled()[name])
    path = Path(name).expanduser()
    if path.suffix == ".json" or path.exists():
        return load_profile(path)
    raise OptionError(
        f"unknown device profile {name!r}; known: {', '.join(_bundled())}, or the path of a JSON file such as those in "
        f"{PROFILE_FOLDER.name}/ of the package's cost_model"
    )


def load_profile(path: Path) -> DeviceProfile:
    """Read one JSON file and fit it to the number of threads.

    Raises:
        OptionError: the file cannot be read, is no JSON or of another schema, or a figure is missing or makes no sense.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"device profile {path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise OptionError(f"device profile {path}: no complete JSON: {error}") from None
    try:
        return _parse(data, torch.get_num_threads())
    except HadamardError as error:
        raise OptionError(f"device profile {path}: {error}") from None


def _parse(data: Any, threads: int) -> DeviceProfile:
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise OptionError(f'not a device profile (it must say "schema": "{SCHEMA}")')
    if data.get("version") != VERSION:
        raise OptionError(f"version {data.get('version')!r}; this release reads version {VERSION}")
    sources: dict[str, str] = {}
    rates = _entry(data, "rates", dict)
    for unit in rates:
        if unit not in UNITS:
            raise OptionError(f"rates: unknown unit {unit!r}; known: {', '.join(UNITS)}")
    profile = DeviceProfile(
        name=_entry(data, "name", str),
        device_type=_entry(data, "device_type", str),
        matches=_entry(data, "matches", str),
        bandwidth=_figure(data, "bandwidth", "bandwidth", threads, sources),
        rates={unit: _figure(rates, unit, "rate", threads, sources) for unit in UNITS},
        launch=_figure(data, "launch", "launch", threads, sources),
        carrier=_preference(data, "carrier", str, sources),
        token_group=_preference(data, "token_group", int, sources),
        column_group=_preference(data, "column_group", int, sources),
        sources=sources,
    )
    if profile.carrier not in CARRIERS:
        raise OptionError(f"carrier must be one of {', '.join(CARRIERS)}, got {profile.carrier!r}")
    for name in ("token_group", "column_group"):
        if getattr(profile, name) < 0 or getattr(profile, name) % 16:
            raise OptionError(f"{name} must be 0 or a multiple of 16, got {getattr(profile, name)}")
    return profile


def _entry(data: Mapping[str, Any], key: str, kind: type) -> Any:
    if key not in data:
        raise OptionError(f"{key!r} is missing")
    value = data[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise OptionError(f"{key!r} must be of type {kind.__name__}, got {value!r}")
    return value


def _preference(data: Mapping[str, Any], key: str, kind: type, sources: dict[str, str]) -> Any:
    entry = _entry(_entry(data, "preferences", dict), key, dict)
    sources[key] = _source(entry, key)
    try:
        return _entry(entry, "value", kind)
    except OptionError as error:
        raise OptionError(f"{key!r}: {error}") from None


def _source(entry: Mapping[str, Any], key: str) -> str:
    kind, source = _entry(entry, "kind", str), _entry(entry, "source", str)
    if kind not in KINDS or not source:
        raise OptionError(f"{key!r}: kind must be one of {', '.join(KINDS)}, and the source must be named")
    return f"{kind}: {source}"


def _positive(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _figure(data: Mapping[str, Any], key: str, dimension: str, threads: int, sources: dict[str, str]) -> float:
    """One figure in SI units."""
    entry = _entry(data, key, dict)
    unit, per = _entry(entry, "unit", str), entry.get("per", "device")
    if unit not in _SI[dimension]:
        raise OptionError(f"{key!r}: unit must be one of {', '.join(_SI[dimension])}, got {unit!r}")
    if per not in ("core", "device"):
        raise OptionError(f'{key!r}: "per" must be "core" or "device", got {per!r}')
    value: Any = entry.get("value")
    ceiling: Any = entry.get("ceiling", float("inf"))
    if not _positive(value) or value == float("inf") or not _positive(ceiling):
        raise OptionError(f"{key!r}: value and ceiling must be positive numbers, got {value!r} and {ceiling!r}")
    sources[key] = _source(entry, key)
    return min(float(value) * (threads if per == "core" else 1), float(ceiling)) * _SI[dimension][unit]
