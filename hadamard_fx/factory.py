"""``MODULE:FACTORY``: the way from a command line to a model."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import torch

from .errors import FactoryError
from .profiles import did_you_mean

__all__ = ["load_factory", "make"]

_RETURNS = "it must return (model, inputs) or (model, inputs, loss)"


def load_factory(target: str) -> Callable[[], Any]:
    """The callable that ``"package.module:name"`` names. The working directory is searched first, as by ``python -m``.

    Raises:
        FactoryError: not of that form, no such module or attribute, or the attribute cannot be called.
    """
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise FactoryError(f"{target!r} is not of the form MODULE:FACTORY, for instance examples.vit:make")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name + ".").startswith(error.name + "."):
            raise FactoryError(f"{target}: there is no module {module_name!r} in {os.getcwd()} or installed") from None
        raise FactoryError(f"{target}: importing {module_name!r} failed: {error}") from error
    except Exception as error:
        raise FactoryError(f"{target}: importing {module_name!r} failed: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise FactoryError(f"{target}: {module_name!r} has no {name!r};{did_you_mean(name, own)}")
    factory = getattr(module, name)
    if not callable(factory):
        raise FactoryError(f"{target}: {name!r} is a {type(factory).__name__} and cannot be called; {_RETURNS}")
    return factory  # type: ignore[no-any-return]


def make(factory: Callable[[], Any], target: str) -> tuple[Callable[..., Any], tuple[Any, ...], Any]:
    """Call the factory; (model, inputs, loss or None).

    Args:
        target: what to call it in messages.

    Raises:
        FactoryError: it raises, or returns something else. A single tensor is taken as the one input.
    """
    try:
        made = factory()
    except Exception as error:
        raise FactoryError(f"{target}: the factory raised {type(error).__name__}: {error}") from error
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        count = f" of {len(made)}" if isinstance(made, tuple) else ""
        raise FactoryError(f"{target}: the factory returned a {type(made).__name__}{count}; {_RETURNS}")
    model, inputs, loss = (*made, None)[:3]
    if isinstance(inputs, torch.Tensor):
        inputs = (inputs,)
    for what, value in (("model", model), ("loss", loss)):
        if value is not None and not callable(value):
            raise FactoryError(f"{target}: the {what} is a {type(value).__name__} and cannot be called; {_RETURNS}")
    if model is None or not isinstance(inputs, (tuple, list)):
        found = "None as model" if model is None else f"inputs of type {type(inputs).__name__}, not a tuple"
        raise FactoryError(f"{target}: the factory returned {found}; {_RETURNS}")
    return model, tuple(inputs), loss
