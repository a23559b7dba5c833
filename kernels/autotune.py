"""Which configuration of a kernel is fastest here: measured once, remembered.

A configuration is a small mapping (tile sizes, warps, stages). The first use of a key on a device times a short list
of them; the answer is kept in memory and in one JSON file per device, versions and kernel sources, so that the next
process does not measure again. Whatever is wrong with that file, the answer is measured anew and the file rewritten.

The file lies under ``$HADAMARD_FX_CACHE_DIR``, else ``$XDG_CACHE_HOME/hadamard_fx/autotune``, else
``~/.cache/hadamard_fx/autotune``. Nothing is measured while a CUDA graph is captured.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hadamard_fx.errors import KernelError
from hadamard_fx.files import write_whole

from .library import source_digest

__all__ = ["Config", "best", "capturing", "directory", "forget", "seconds"]

Config = Mapping[str, Any]
"""One configuration: JSON values by name."""

_CHOSEN: dict[tuple[str, str, str], Config] = {}
_LOCK = threading.RLock()
_LOG = logging.getLogger(__package__)


def best(
    kernel: str,
    key: Mapping[str, object],
    configs: Sequence[Config],
    run: Callable[[Config], object],
    *,
    measure: Callable[[Callable[[], object]], float] | None = None,
) -> Config:
    """The fastest of ``configs`` for ``key`` on the current device.

    Args:
        kernel: name of the kernel.
        key: what the answer depends on besides device, versions and sources: sizes (bucketed), dtypes, flags.
        configs: candidates, the safest guess first; it is used unmeasured while a CUDA graph is captured.
        run: launches the kernel once with a configuration, raising if it does not compile.
        measure: seconds of one call; by default CUDA events, or the clock without a CUDA device.

    Returns:
        An element of ``configs``. Another list of candidates for the same key is another question.

    Raises:
        KernelError: none of the configurations runs; names the kernel, the key and the last cause.
    """
    where = environment_digest()
    listed = hashlib.sha256(json.dumps([dict(c) for c in configs], sort_keys=True).encode()).hexdigest()[:8]
    slot = (where, kernel, f"{json.dumps(key, sort_keys=True, default=str)} of {listed}")
    with _LOCK:
        stored = _CHOSEN.get(slot) or _read(directory() / f"{where}.json").get(f"{slot[1]} {slot[2]}")
        remembered = next((config for config in configs if dict(config) == stored), None)
        if remembered is not None:
            _CHOSEN[slot] = remembered
            return remembered
        if len(configs) == 1 or capturing():
            return configs[0]
        begin = time.perf_counter()
        chosen = _fastest(kernel, key, configs, run, measure or seconds)
        _LOG.debug(
            "%s tuned, %d configurations, %.2f s: %s", kernel, len(configs), time.perf_counter() - begin, slot[2]
        )
        _CHOSEN[slot] = chosen
        _to_disk(where, slot, chosen)
        return chosen


def _fastest(
    kernel: str,
    key: Mapping[str, object],
    configs: Sequence[Config],
    run: Callable[[Config], object],
    measure: Callable[[Callable[[], object]], float],
) -> Config:
    times: list[tuple[float, int]] = []
    cause: BaseException | str = "no configuration is left for this device"
    for index, config in enumerate(configs):
        try:
            run(config)  # compiles
            times.append((measure(functools.partial(run, config)), index))
        except Exception as error:  # too many registers, too much shared memory, an unsupported instruction, …
            cause = error
    if not times:
        raise KernelError(kernel, " ".join(f"{name}={value}" for name, value in key.items()), cause)
    return configs[min(times)[1]]


def seconds(call: Callable[[], object], repeats: int = 8) -> float:
    """Median seconds of ``call`` on the current device, after one warm-up."""
    call()
    if not torch.cuda.is_available():
        samples = []
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            samples.append(time.perf_counter() - start)
        return statistics.median(samples)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        call()
        event.record()
    events[-1].synchronize()
    times = [float(a.elapsed_time(b)) for a, b in itertools.pairwise(events)]
    return statistics.median(times) * 1e-3


def capturing() -> bool:
    """Whether the current stream is being captured into a CUDA graph."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def forget() -> None:
    """Drop what this process remembers (not the files)."""
    with _LOCK:
        _CHOSEN.clear()
        _read.cache_clear()


def directory() -> Path:
    """Where the answers are kept."""
    chosen = os.environ.get("HADAMARD_FX_CACHE_DIR")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "hadamard_fx" / "autotune"


def environment() -> dict[str, str]:
    """What every answer depends on: device, versions, sources of the kernels."""
    device = "cpu"
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        device = f"{torch.cuda.get_device_name()} sm_{major}{minor}"
    return {"device": device, "torch": torch.__version__, "triton": _triton_version(), "sources": source_digest()}


def environment_digest() -> str:
    """A short name for ``environment()``, which depends on the current device only."""
    return _environment_digest(torch.cuda.current_device() if torch.cuda.is_available() else -1)


@functools.cache
def _environment_digest(device: int) -> str:
    del device  # the current one; it is the key of the cache
    return hashlib.sha256(json.dumps(environment(), sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def _triton_version() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "none"


@functools.cache
def _read(path: Path) -> dict[str, Config]:
    try:
        entries = json.loads(path.read_text())["entries"]
        return {name: config for name, config in entries.items() if isinstance(config, dict)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # absent, unreadable or damaged: measured again, then rewritten


def _to_disk(where: str, slot: tuple[str, str, str], chosen: Config) -> None:
    """Add one answer to the file. A file system that refuses costs the next process a measurement, nothing else."""
    path = directory() / f"{where}.json"
    _read.cache_clear()  # another process may have added to it meanwhile
    entries = {**_read(path), f"{slot[1]} {slot[2]}": dict(chosen)}
    text = json.dumps({"environment": environment(), "entries": entries}, indent=1, sort_keys=True)
    with contextlib.suppress(OSError):
        write_whole(path, text)
    _read.cache_clear()
