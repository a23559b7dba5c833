"""Where the profiles lie that ``hadamard-fx tune`` measured on this machine, one for each device and number of threads.

``$HADAMARD_FX_CONFIG_DIR``, else ``$XDG_CONFIG_HOME/hadamard_fx``, else ``~/.config/hadamard_fx``, folder ``profiles``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from hadamard_fx.errors import DeviceError
from hadamard_fx.files import write_whole

__all__ = ["device_name", "forget", "path_of", "save"]


def device_name(device_type: str, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What tells this device from others: the maker's name, for a CPU with the number of threads.

    Raises:
        DeviceError: there is no such device.
    """
    if device_type == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError("there is no CUDA device here that could be measured")
        return str(torch.cuda.get_device_name())
    model = "CPU"
    with contextlib.suppress(OSError):
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"


def path_of(device_type: str) -> Path:
    """The file of this machine's device, whether it exists or not."""
    folder = os.environ.get("HADAMARD_FX_CONFIG_DIR")
    base = os.environ.get("XDG_CONFIG_HOME")
    root = Path(folder) if folder else (Path(base) if base else Path.home() / ".config") / "hadamard_fx"
    stem = re.sub(r"[^a-z0-9]+", "-", device_name(device_type).lower()).strip("-")
    return root / "profiles" / f"{stem}.json"


def save(device_type: str, data: dict[str, Any]) -> Path:
    """Keep a profile for this machine's device: all of it or nothing, one process at a time.

    Raises:
        DeviceError: the folder cannot be written; what was there before is as it was.
    """
    path = path_of(device_type)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=30):
            write_whole(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")
    except (OSError, TimeoutError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DeviceError(
            f"the measured profile cannot be kept in {path.parent}: {reason}; name another folder by "
            "HADAMARD_FX_CONFIG_DIR"
        ) from error
    return path


def forget(device_type: str) -> Path | None:
    """Remove the file; returns its path, None where there was none."""
    path = path_of(device_type)
    if not path.exists():
        return None
    path.unlink()
    return path
