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
from hadamard_fx.kernels.traffic import OWN_RATES, UNITS
from hadamard_fx.scheme import CARRIERS

from .cpu_flags import cpu_flags
from .figures import entry, figure, figure_or, preference
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
PRODUCTS = ("int8", "float8")
"""Units whose products may rescale partial sums."""

_FOUR = "a quarter of vector: four instructions for each partial sum"


@dataclass(frozen=True)
class DeviceProfile:
    """What one device can do, in SI units, for the number of threads at hand.

    Attributes:
        name: of the profile; it says so where the profile is only a stand-in for the device.
        device_type: ``"cuda"`` or ``"cpu"``.
        matches: how it recognises a device: a regular expression for the CUDA device's name, or the CPU flags that must
            all be present, separated by spaces. Empty: any device of the type (the generic profile).
        bandwidth: bytes/s to and from memory, reads and writes added up.
        rates: operations/s of each unit of ``kernels.traffic.UNITS`` and ``OWN_RATES`` (a multiply-add is two
            operations); a kernel without a rate of its own has that of ``"vector"``.
        launch: seconds that every kernel costs besides its work.
        rescales: partial sums/s that a product in groups multiplies by a scale, beside its operations: ``"int8"``,
            ``"float8"``.
        processors: that work apart from each other, whose last wave counts; 0 where it is not known.
        carrier: the type that holds 4-bit integers fastest: ``"int8"`` or ``"float8_e4m3"``.
        token_group, column_group: tokens that share a scale in ``LowRank``, and columns in the gradient's ``Hadamard``,
            of the kernel that reads a gradient once; 0 where there is none. Whether it is taken is a matter of price.
        sources: figure -> ``"measured: …"``, ``"datasheet: …"`` or ``"derived: …"``.
    """

    name: str
    device_type: str
    matches: str
    bandwidth: float
    rates: Mapping[str, float] = field(hash=False)
    launch: float
    rescales: Mapping[str, float] = field(hash=False)
    processors: int
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
    rates, rescales = entry(data, "rates", dict), data.get("rescales", {})
    for name, table, known in (("rates", rates, (*UNITS, *OWN_RATES)), ("rescales", rescales, PRODUCTS)):
        for unit in table:
            if unit not in known:
                raise OptionError(f"{name}: unknown unit {unit!r}; known: {', '.join(known)}")
    found = {unit: figure(rates, unit, "rate", threads, sources) for unit in UNITS}
    for kernel in OWN_RATES:
        found[kernel] = figure_or(rates, kernel, "rate", threads, sources, found["vector"], "as vector")
    quarter = found["vector"] / 4
    rescaled = {u: figure_or(rescales, u, "rate", threads, sources, quarter, _FOUR, "rescales ") for u in PRODUCTS}
    profile = DeviceProfile(
        name=entry(data, "name", str),
        device_type=entry(data, "device_type", str),
        matches=entry(data, "matches", str),
        bandwidth=figure(data, "bandwidth", "bandwidth", threads, sources),
        rates=found,
        launch=figure(data, "launch", "launch", threads, sources),
        rescales=rescaled,
        processors=int(figure_or(data, "processors", "count", threads, sources, 0.0, "not known: no last wave counts")),
        carrier=preference(data, "carrier", str, sources),
        token_group=preference(data, "token_group", int, sources),
        column_group=preference(data, "column_group", int, sources),
        sources=sources,
    )
    if profile.carrier not in CARRIERS:
        raise OptionError(f"carrier must be one of {', '.join(CARRIERS)}, got {profile.carrier!r}")
    for name in ("token_group", "column_group"):
        if getattr(profile, name) < 0 or getattr(profile, name) % 16:
            raise OptionError(f"{name} must be 0 or a multiple of 16, got {getattr(profile, name)}")
    return profile
