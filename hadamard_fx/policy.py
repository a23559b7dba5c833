"""Policy: what the user asked for, validated, with the origin of every setting.

Precedence, key by key: options > environment > ``hadamard.toml`` > default. This module imports nothing of torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from .errors import OptionError, OverrideError
from .options import DEFAULTS, PRODUCTS, READERS, Choice, Override, to_json
from .plan import Role
from .profiles import PROFILES, Profile, did_you_mean, register_profile
from .scheme import Exact, Scheme
from .sources import find_file, read_environment, read_file
from .straight_through import StraightThrough

__all__ = ["DEFAULTS", "PROFILES", "Choice", "Override", "Policy", "Profile", "register_profile"]


@dataclass(frozen=True)
class Policy:
    """What the user asked for.

    Attributes:
        profile: for all that no other setting rules; its schemes have ``bits`` bits where that is set.
        bits: of the profile's schemes; None: as the profile says. Overrides are not concerned.
        forward, grad_input, grad_weight: the scheme of all such products; None: as the profile says.
        overrides: in the order given; the first that matches a layer rules it.
        roll_loops: compile recurrent loops as one operator each; None: where the profile is one for recurrences.
        objective: share of memory in what is minimised: 0 for predicted time, 1 for the bytes kept for the backward.
        memory_budget: largest share of the bytes that exact keeps for the backward.
        max_error: largest relative error of a product, measured or predicted; None: no bound.
        count_saturation: products whose accumulators saturate count how often they do.
        device_profile: name or path of the device profile that prices; None: the one of the device at hand.
        calibration: a ``Calibration`` or the path of its file; None: nothing was measured.
        settings: option -> (value as JSON, ``"options" | "environment" | "file" | "default"``), as ``Plan`` holds them.
        file: the ``hadamard.toml`` that was read, ``""`` where there is none.
    """

    profile: Profile
    bits: int | None
    forward: Scheme | None
    grad_input: Scheme | None
    grad_weight: Scheme | None
    overrides: tuple[Override, ...]
    roll_loops: bool | None
    objective: float
    memory_budget: float
    max_error: float | None
    count_saturation: bool
    device_profile: str | None
    calibration: Any
    settings: tuple[tuple[str, tuple[Any, str]], ...]
    file: str = ""

    @classmethod
    def resolve(
        cls,
        options: Mapping[str, object] | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        directory: str | Path | None = None,
    ) -> Self:
        """Merge and validate all sources.

        Args:
            options: as given to ``torch.compile(..., options=...)``.
            environ: ``os.environ`` by default.
            directory: where the search for ``hadamard.toml`` starts, upwards; the working directory by default.

        Raises:
            OptionError: an unknown option, a wrong type, an unreadable file. SchemeError: parameters of a scheme.
            OverrideError: no regular expression, or no rule.
        """
        if options is not None and not isinstance(options, Mapping):
            raise OptionError(f"options must be a dict, got {options!r}")
        path = find_file(Path.cwd() if directory is None else Path(directory).absolute())
        sources = {
            "file": read_file(path) if path else {},
            "environment": read_environment(os.environ if environ is None else environ, tuple(DEFAULTS)),
            "options": dict(options or {}),
        }
        settings: dict[str, tuple[Any, str]] = {key: (value, "default") for key, value in DEFAULTS.items()}
        for origin, values in sources.items():
            _check_keys(values, f"{path}" if origin == "file" else origin)
            settings.update({key: (value, origin) for key, value in values.items()})
        return cls._from_settings(settings, str(path or ""))

    @classmethod
    def _from_settings(cls, settings: Mapping[str, tuple[Any, str]], file: str) -> Self:
        values: dict[str, Any] = {}
        for key, (value, origin) in settings.items():
            where = {"default": f"option {key!r}", "options": f"option {key!r}", "environment": f"environment, {key!r}"}
            values[key] = READERS[key](value, where.get(origin, f"{file}, {key!r}"))
        if values["bits"] is not None:
            values["profile"] = values["profile"].with_bits(values["bits"])
        plain = tuple((key, (to_json(key, value), origin)) for key, (value, origin) in settings.items())
        for key in ("inductor", "passes"):  # mappings, which would not hash; the settings hold them
            values.pop(key)
        return cls(**values, settings=plain, file=file)

    @property
    def inductor(self) -> dict[str, Any]:
        """Patches of Inductor's own configuration."""
        return dict(dict(self.settings)["inductor"][0])

    @property
    def passes(self) -> dict[str, Any]:
        """Pass -> table of its fields, or False: it is left out."""
        return dict(dict(self.settings)["passes"][0])

    @property
    def rolls_loops(self) -> bool:
        """Whether dynamo's graph is searched for unrolled loops."""
        if self.roll_loops is not None:
            return self.roll_loops
        return any(isinstance(scheme, StraightThrough) for scheme in self.profile.schemes(Role.FORWARD))

    def choice(self, layer: str, role: Role) -> Choice:
        """What the product ``role`` of ``layer`` may use: the first matching override, else the option of the role,
        else the profile. Products that are not a linear layer's stay exact."""
        if role not in PRODUCTS.values():
            return Choice((Exact(),), False, f"{role} products stay exact")
        for override in self.overrides:
            if override.matches(layer):
                found = override.choice(role)
                if found is not None:
                    return found
                break
        scheme: Scheme | None = getattr(self, str(role))
        if scheme is not None:
            return Choice((scheme,), False, f"option '{role}'", written=True)
        return Choice(self.profile.schemes(role), self.profile.priced, f"profile {self.profile.name!r}")

    def unmatched(self, layers: Iterable[str]) -> tuple[str, ...]:
        """The patterns of the overrides that match none of ``layers``."""
        names = tuple(layers)
        return tuple(o.pattern for o in self.overrides if not any(o.matches(name) for name in names))

    def unmatched_error(self, layers: Iterable[str]) -> OverrideError | None:
        """The error to raise where an override matches none of ``layers``, None where all match."""
        names = sorted(set(layers))
        unmatched = self.unmatched(names)
        if not unmatched:
            return None
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        shown = ", ".join(names[:8]) + more if names else "none"
        return OverrideError(
            f"override '{unmatched[0]}' matches no layer; a pattern must match the whole name, so write "
            f"r'blocks\\.0\\..*' for all below blocks.0 (hadamard_fx.explain lists the names). Layers: {shown}"
        )

    def digest(self) -> str:
        """A hash of all that decides and of what a report says about it; the same in every process."""
        profiles = [self.profile, *(o.profile for o in self.overrides if o.profile)]
        # A list, not a sorted table: the order of the overrides decides.
        overrides = list(dict(self.settings)["overrides"][0].items())
        content = {"settings": self.settings, "overrides": overrides, "profiles": [p.to_json() for p in profiles]}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def __hash__(self) -> int:
        return int(self.digest()[:15], 16)


def _check_keys(values: Mapping[str, object], source: str) -> None:
    for key in values:
        if key not in DEFAULTS:
            where = "" if source == "options" else f" in {source}"
            raise OptionError(f"unknown option {key!r}{where};{did_you_mean(str(key), DEFAULTS)}")
