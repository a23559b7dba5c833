"""The methods, one file each; a new file that registers a ``Learner`` is one more."""

from __future__ import annotations

import importlib
import pkgutil

from ..learner import METHODS

__all__ = ["METHODS"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
