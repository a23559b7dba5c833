"""Where settings come from besides the options: the environment and ``hadamard.toml``. Values are not judged here."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path

from .errors import OptionError
from .profiles import did_you_mean

__all__ = ["FILE_NAME", "PREFIX", "find_file", "read_environment", "read_file"]

PREFIX = "HADAMARD_FX_"
FILE_NAME = "hadamard.toml"
NOT_OPTIONS = frozenset({"HADAMARD_FX_CACHE_DIR", "HADAMARD_FX_COMMIT", "HADAMARD_FX_CONFIG_DIR", "HADAMARD_FX_DUMP"})
"""Variables of the kernels' cache, of the benchmarks and of the passes' dumps: they change no decision."""


def read_environment(environ: Mapping[str, str], keys: tuple[str, ...]) -> dict[str, object]:
    """The settings among ``environ``: ``HADAMARD_FX_<KEY>``, text or JSON. An empty variable counts as unset.

    Raises:
        OptionError: an unknown variable with our prefix, or broken JSON.
    """
    names = {PREFIX + key.upper(): key for key in keys}
    settings: dict[str, object] = {}
    for variable, text in sorted(environ.items()):
        if not variable.startswith(PREFIX) or variable in NOT_OPTIONS or not text.strip():
            continue
        if variable not in names:
            raise OptionError(f"unknown environment variable {variable};{did_you_mean(variable, names)}")
        settings[names[variable]] = _value(variable, text.strip())
    return settings


def _value(variable: str, text: str) -> object:
    """JSON where it looks like a table, plain text otherwise (names and paths need no quotes)."""
    if text[0] not in '{["' and text != "null":
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise OptionError(f"{variable} is no valid JSON: {error}; it holds {text!r}") from None


def find_file(directory: Path) -> Path | None:
    """The nearest ``hadamard.toml`` from ``directory`` upwards."""
    candidates = (folder / FILE_NAME for folder in (directory, *directory.parents))
    return next((path for path in candidates if path.is_file()), None)


def read_file(path: Path) -> dict[str, object]:
    """The settings of ``path``: its table ``[hadamard]``, or its top level where there is none.

    Raises:
        OptionError: the file cannot be read, is no TOML, or has keys beside the table ``[hadamard]``.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise OptionError(f"cannot read {path}: {error}") from None
    table = data.pop("hadamard", None)
    if table is None:
        return data
    if not isinstance(table, dict):
        raise OptionError(f"{path}: hadamard must be a table, got {table!r}; write [hadamard] above the settings")
    if data:
        extra = ", ".join(repr(key) for key in data)
        raise OptionError(f"{path}: {extra} outside the table [hadamard]; move it under [hadamard] or delete it")
    return table
