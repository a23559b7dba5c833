"""Which instructions the CPU has, as far as a profile asks."""

from __future__ import annotations

import functools
from pathlib import Path

__all__ = ["cpu_flags"]


@functools.cache
def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Linux' names of the CPU's features, such as ``"avx512_vnni"`` and ``"amx_int8"``.

    Where they cannot be read the set is empty, so that the generic profile, which predicts no gain, is used.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    line = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())
