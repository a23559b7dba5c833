"""Pickles of arrays, lists and strings, as Python 2 wrote them, and nothing else.

``pickle.loads`` runs whatever a file asks it to. Here a file may name the three functions that make an array; any other
name is refused before it is even imported.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from .dataset import DatasetError

__all__ = ["load"]

_NAMES: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        return _NAMES[module, name]


def load(content: bytes, path: Path) -> Any:
    """What is pickled in ``content``; strings are bytes, as in Python 2.

    Raises:
        DatasetError: it is no pickle, or asks for more than arrays. ``path`` is for the message.
    """
    try:
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle may raise anything
        raise DatasetError(f"{path} cannot be read: {error}; it is not the original file") from error
