"""What identifies a pass, or a scheme of one's own, in a cache key: its source and its options.

On a hit of torch's caches no pass runs, so the key must change whenever a pass would do something else. Where that
cannot be told, caching is off and the report says why: a compilation too many is a nuisance, a stale one is a bug.

The source is the whole file that a class stands in, not only the class: helpers beside it count. What it imports from
elsewhere does not; let such a pass have a field ``version`` and raise it.
"""

from __future__ import annotations

import builtins
import dataclasses
import enum
import functools
import hashlib
import inspect
import types
from abc import ABC
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic

import torch

from .base import Pass
from .order import Placed
from .rule import load_rules

__all__ = ["Identity", "Uncacheable", "identify"]

OURS = "hadamard_fx."
"""Modules whose sources are part of every key anyhow."""


class Uncacheable(Exception):
    """Why something has no identity that would hold in another process. Never leaves this module."""


@dataclasses.dataclass(frozen=True)
class Identity:
    """Of everything that a user added.

    Attributes:
        digest: SHA-256 over all that could be told.
        unknown: one sentence for each thing that could not: with any of them, nothing may be cached.
    """

    digest: str
    unknown: tuple[str, ...] = ()


def identify(placed: Sequence[Placed], order: Sequence[str]) -> Identity:
    """The identity of the active passes, in their order, and of all schemes that are not this project's."""
    digest, unknown = hashlib.sha256("\0".join(order).encode()), []
    things: list[tuple[str, Callable[[], str]]] = [
        (f"pass {entry.name!r}", functools.partial(_pass, entry.run)) for entry in placed
    ]
    for scheme, rule in load_rules().items():
        if not type(rule).__module__.startswith(OURS):
            things.append((f"scheme {scheme.kind!r}", functools.partial(_classes, scheme, type(rule))))
    for what, describe in things:
        try:
            digest.update(f"{what}\0{describe()}\0".encode())
        except Uncacheable as reason:
            unknown.append(f"{what} {reason}, so nothing is cached and every process compiles again")
    return Identity(digest.hexdigest(), tuple(unknown))


def _pass(run: Pass) -> str:
    fields = [(field.name, value_identity(getattr(run, field.name))) for field in dataclasses.fields(run)]
    return f"{_classes(type(run))}\0{fields!r}"


def _classes(*kinds: type) -> str:
    """The sources of classes and of their bases, as far as they are neither this project's nor Python's own."""
    bases = dict.fromkeys(base for kind in kinds for base in kind.__mro__)
    theirs = [base for base in bases if not base.__module__.startswith(OURS) and not _pythons(base)]
    return "\0".join(map(_source, theirs))


def _pythons(kind: type) -> bool:
    """Not by the module's name: what ``exec`` defines says that it comes from ``builtins`` too."""
    return kind in (ABC, Generic) or getattr(builtins, kind.__name__, None) is kind


def _source(kind: type) -> str:
    """Name and source of a class, with its file.

    Raises:
        Uncacheable: the source is not at hand, or a method uses what no source shows.
    """
    text = _read(kind, "has no source that could be read (a console, or exec)")
    for name, method in _methods(kind):
        hidden = set(method.__code__.co_freevars) - {"__class__"}
        if hidden:
            raise Uncacheable(f"uses {', '.join(sorted(hidden))} of an enclosing function in {name}")
    return text


def _read(thing: type | types.FunctionType, otherwise: str) -> str:
    """Name and source of a class or function, with the hash of its file."""
    try:
        text = inspect.getsource(thing)
        file = Path(inspect.getsourcefile(thing) or "")
    except (OSError, TypeError):
        raise Uncacheable(otherwise) from None
    whole = hashlib.sha256(file.read_bytes() if file.is_file() else b"").hexdigest()
    return f"{thing.__module__}.{thing.__qualname__}\0{text}\0{whole}"


def _methods(kind: type) -> Iterator[tuple[str, types.FunctionType]]:
    for name, member in vars(kind).items():
        function = inspect.unwrap(getattr(member, "__func__", getattr(member, "fget", None) or member))
        theirs = isinstance(function, types.FunctionType) and function.__module__ == kind.__module__
        if theirs and not function.__code__.co_filename.startswith("<"):  # those are made by dataclasses
            yield name, function


def value_identity(value: Any) -> str:
    """A text that is the same in every process for the same value.

    Raises:
        Uncacheable: the value has no such text: a lambda, a closure, an object without one.
    """
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | torch.device):
        return repr(value)
    if isinstance(value, enum.Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__}({', '.join(map(value_identity, value))})"
    if isinstance(value, set | frozenset):
        return f"set({', '.join(sorted(map(value_identity, value)))})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(f'{value_identity(k)}: {value_identity(v)}' for k, v in value.items()))}}}"
    if isinstance(value, types.FunctionType):
        return _function(value)
    if isinstance(value, type):
        return _classes(value) or f"{value.__module__}.{value.__qualname__}"
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return f"{value_identity(type(value))}{value_identity(fields)}"
    raise Uncacheable(f"holds {type(value).__qualname__}, an object without an identity")


def _function(function: types.FunctionType) -> str:
    if function.__name__ == "<lambda>":
        raise Uncacheable("holds a lambda, whose source cannot be told from its neighbours'; write a def")
    if function.__closure__:
        raise Uncacheable(f"holds {function.__qualname__}, which uses variables of an enclosing function")
    return _read(function, f"holds {function.__qualname__}, whose source cannot be read")
