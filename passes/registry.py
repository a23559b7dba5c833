"""Passes of one's own: ``register_pass``, the entry-point group ``hadamard_fx.passes``, and the options of each."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, TypeVar, overload

from hadamard_fx.errors import OptionError, PassDefinitionError, PassLoadError
from hadamard_fx.profiles import did_you_mean

from .base import STAGES, Pass, location
from .order import Placed

__all__ = ["GROUP", "PASSES", "active", "load_entry_point", "load_entry_points", "register_pass", "unregister_pass"]

GROUP = "hadamard_fx.passes"
"""Entry points of this group are loaded before the first graph is compiled: a pass class, an instance of one, or a
module that registers its passes when it is imported."""

PASSES: dict[str, Placed] = {}
"""Every registered pass with its default options, by name, in the order of registration."""

Names = str | tuple[str, ...]
Registrable = TypeVar("Registrable", bound=type[Pass] | Pass)


@overload
def register_pass(run: Registrable, *, requires: Names = (), after: Names = (), before: Names = ()) -> Registrable: ...
@overload
def register_pass(
    run: None = None, *, requires: Names = (), after: Names = (), before: Names = ()
) -> Callable[[Registrable], Registrable]: ...
def register_pass(run: Any = None, *, requires: Names = (), after: Names = (), before: Names = ()) -> Any:
    """Have a pass run in every compilation from now on; a class decorator, with or without arguments.

    ``options={"passes": {name: {…}}}`` sets its fields, ``{name: False}`` switches it off.

    Args:
        run: a subclass of ``Pass`` whose fields all have defaults, or an instance.
        requires, after, before: added to those of the class; a name, or several.

    Raises:
        PassDefinitionError: no pass, no single effect, or a name that is taken. Registering a class of the same module
            and name again replaces it, so that a notebook's cell can be run twice.
    """
    if run is None:
        return functools.partial(register_pass, requires=requires, after=after, before=before)
    made = _instance(run)
    made.effect()  # raises where it has none or two
    _refuse_taken(made)
    PASSES[made.name] = Placed(
        made, *(_names(of_class) + _names(given) for of_class, given in _constraints(made, requires, after, before))
    )
    return run


def _constraints(made: Pass, *given: Names) -> list[tuple[Names, Names]]:
    return list(zip((made.requires, made.after, made.before), given, strict=True))


def _names(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _instance(run: object) -> Pass:
    if isinstance(run, Pass):
        return run
    if not (isinstance(run, type) and issubclass(run, Pass)):
        raise PassDefinitionError(f"a pass derives from hadamard_fx.Pass; {run!r} does not")
    bare = [field.name for field in dataclasses.fields(run) if _has_no_default(field)]
    if bare:
        raise PassDefinitionError(
            f"pass {run.name!r} ({location(run)}): {', '.join(bare)} has no default; give it one, or register an "
            f"instance: register_pass({run.__name__}({bare[0]}=…))"
        )
    return run()


def _has_no_default(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _refuse_taken(made: Pass) -> None:
    kind, known = type(made), PASSES.get(made.name)
    if made.name in STAGES:
        raise PassDefinitionError(f"pass {made.name!r} ({location(kind)}) has the name of a stage; choose another")
    if known is None:
        return
    other = type(known.run)
    if (other.__module__, other.__qualname__) != (kind.__module__, kind.__qualname__):
        raise PassDefinitionError(
            f"two passes call themselves {made.name!r}: {location(other)} and {location(kind)}; rename one"
        )


def unregister_pass(name: str) -> None:
    """Forget a pass."""
    PASSES.pop(name, None)


@functools.cache
def load_entry_points() -> None:
    """Import what installed packages declare under ``hadamard_fx.passes``, once.

    Raises:
        PassLoadError: an entry point does not load, or leads to no pass.
    """
    for point in importlib.metadata.entry_points(group=GROUP):
        load_entry_point(point)


def load_entry_point(point: importlib.metadata.EntryPoint) -> None:
    """Import what one entry point names, and register it unless its import did.

    Raises:
        PassLoadError: it does not load, or leads to no pass.
    """
    where = f"entry point {point.name!r} = {point.value!r} of {point.dist.name if point.dist else 'a package'}"
    try:
        found = point.load()
    except Exception as error:
        raise PassLoadError(f"{where} does not load: {type(error).__name__}: {error}") from error
    registered = [thing for entry in PASSES.values() for thing in (entry.run, type(entry.run))]
    if isinstance(found, ModuleType) or any(found is thing for thing in registered):
        return
    try:
        register_pass(found)
    except PassDefinitionError as error:
        raise PassLoadError(f"{where}: {error}") from error


def active(options: Mapping[str, Any]) -> tuple[Placed, ...]:
    """The passes of one compilation, with their options.

    Args:
        options: name -> table of fields, or False to leave the pass out; passes without an entry have their defaults.

    Raises:
        OptionError: an unknown pass or field, or a value that the pass refuses.
    """
    load_entry_points()
    for name in options:
        if name not in PASSES:
            known = did_you_mean(name, PASSES) if PASSES else " no pass is registered"
            raise OptionError(f"option 'passes': unknown pass {name!r};{known}")
    chosen = ((entry, options.get(name, True)) for name, entry in PASSES.items())
    return tuple(_with_options(entry, fields) for entry, fields in chosen if fields is not False)


def _with_options(entry: Placed, fields: Any) -> Placed:
    if fields is True:
        return entry
    where = f"option 'passes', {entry.name!r}"
    defaults = {f.name: getattr(entry.run, f.name) for f in dataclasses.fields(entry.run) if f.init}
    for key, value in fields.items():
        if key not in defaults:
            raise OptionError(f"{where}: no field {key!r};{did_you_mean(key, defaults)}")
        if isinstance(defaults[key], tuple) and isinstance(value, list):
            fields = {**fields, key: tuple(value)}  # JSON and TOML have no tuples
        elif isinstance(defaults[key], bool | int | float | str) and not _same_kind(value, defaults[key]):
            raise OptionError(f"{where}: {key} must be like {defaults[key]!r}, got {value!r}")
    try:
        return dataclasses.replace(entry, run=dataclasses.replace(entry.run, **fields))
    except (TypeError, ValueError) as error:  # from the pass's own __post_init__
        raise OptionError(f"{where}: {error}") from error


def _same_kind(value: object, default: object) -> bool:
    """Of one type; an int may stand where a float does. True is no number."""
    return type(value) is type(default) or (type(default) is float and type(value) is int)
