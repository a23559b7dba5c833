"""Kernels that are written out as Python files: a traceback or a profiler points into a file that one can read.

The file lies in Inductor's cache folder under the digest of its text, so that a kernel has one name in every process
and is compiled once for all of them. The processes that compile ahead import such files too: nothing here needs torch.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import sys
import threading
from pathlib import Path
from types import ModuleType

from hadamard_fx.files import write_whole

__all__ = ["PREFIX", "import_file", "module"]

_IMPORTING = threading.RLock()

PREFIX = "hadamard_fx_generated_"
"""Of the names of such modules."""


@functools.lru_cache(maxsize=4096)
def module(folder: str, stem: str, text: str) -> ModuleType:
    """The module with this text.

    Args:
        folder: cache folder, in which ``hadamard_fx/kernels`` is made.
        stem: what the file is called, in front of the digest.
        text: Python source.

    Raises:
        OSError: the cache folder cannot be written.
    """
    name = f"{PREFIX}{stem}_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    path = Path(folder) / "hadamard_fx" / "kernels" / f"{name}.py"
    if not path.exists():
        write_whole(path, text)
    return import_file(str(path))


def import_file(path: str) -> ModuleType:
    """The module in a file that ``module`` wrote, imported once; another process may have written it."""
    name = Path(path).stem
    with _IMPORTING:  # autograd has a thread for every device
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None and spec.loader is not None
            made = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(made)
            sys.modules[name] = made
        return sys.modules[name]
