"""The datasets, one file each; a new file that registers a ``Dataset`` is one more. Nothing is ever downloaded."""

from __future__ import annotations

import importlib
import pkgutil

from .dataset import DATASETS, Dataset, DatasetError

__all__ = ["DATASETS", "Dataset", "DatasetError"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
