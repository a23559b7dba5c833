"""Builds and loads the CPU kernels: once per machine, by Inductor's own C++ builder and into Inductor's own cache.

So the compiler, OpenMP, the instruction set and the cache's place and locks are what the user has set up for Inductor.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

from hadamard_fx import compat
from hadamard_fx.errors import KernelError

from . import rounding, scaling
from .cpp_channels import CHANNELS
from .cpp_common import COMMON
from .cpp_entry import ENTRY
from .cpp_rows import ROWS

__all__ = ["build", "library", "source"]

_POINTER, _INT, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float
_TRANSFORM: list[Any] = [
    _POINTER,
    _INT,
    _LONG,
    _LONG,
    _LONG,
    _INT,
    _LONG,
    _LONG,
    _INT,
    _FLOAT,
    _INT,
    _INT,
    _LONG,
    _LONG,
]
_TRANSFORM += [_POINTER, _LONG, _POINTER, _POINTER, _LONG, _POINTER, _POINTER, _INT]
_RESCALE: list[Any] = [_POINTER, _LONG, _LONG, _LONG, _POINTER, _LONG, _POINTER, _POINTER, _INT, _INT, _INT]


def source() -> str:
    """The C++ source, the constants of the rounding hash filled in."""
    text = COMMON + ROWS + CHANNELS + ENTRY
    for name in ("WEYL", "MULTIPLIER", "SEED_MULTIPLIER"):
        text = text.replace(f"@{name}@", str(getattr(rounding, name)))
    return text.replace("@HEADROOM@", repr(scaling.HEADROOM))


def build(text: str, name: str) -> ctypes.CDLL:
    """Compile and load C++; ``name`` is what an error calls it.

    Raises:
        KernelError: there is no working C++ compiler.
    """
    try:
        return compat.load_cpp(text)
    except (OSError, RuntimeError) as error:
        cause = (
            f"{error}\nThe CPU kernels are compiled on first use and need a C++17 compiler with OpenMP: install g++ or "
            "clang, or name one in the environment variable CXX."
        )
        raise KernelError(name, "this machine", cause) from error


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded library, its functions typed.

    Raises:
        KernelError: there is no working C++ compiler.
    """
    loaded = build(source(), "hadamard_transform (C++)")
    loaded.hadamard_transform.argtypes, loaded.hadamard_transform.restype = _TRANSFORM, ctypes.c_int
    loaded.hadamard_rescale.argtypes, loaded.hadamard_rescale.restype = _RESCALE, None
    return loaded
