"""Compiling the Triton kernels of a graph while Inductor is still busy with the rest of it.

A kernel compiled when it is first launched would keep the first step waiting, one kernel after the other. Here a call
is made with fake tensors: the launcher decides everything as usual, down to ``submit``, which gets what the compiler
must be asked. Other processes compile (``triton_worker.py``), because a thread would take Python's lock from Inductor,
and leave the result in Triton's cache on disk. Who launches a kernel that is not there waits for all that was
submitted, then finds it in that cache.

A compilation that fails here fails again, and is reported, where the kernel is launched.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from hadamard_fx import compat

from .library import Kernel

__all__ = ["cache_directory", "prepare", "start", "submit", "wait"]

_SUBMITTED: dict[Any, concurrent.futures.Future[None]] = {}
_LONGEST_SECONDS = 120
_STARTED_IN = os.getcwd()
_IDLE_SECONDS = 60
"""A process that has nothing to do for so long ends: it holds a few hundred megabytes."""


def prepare(calls: Iterable[tuple[Kernel, tuple[Any, ...]]]) -> None:
    """Start to compile what the calls need.

    Args:
        calls: kernels with their arguments; tensors are fake CUDA tensors of known sizes, others are passed over.
    """
    for kernel, arguments in calls:
        tensors = list(compat.tensors(arguments))
        static = all(isinstance(extent, int) for tensor in tensors for extent in (*tensor.shape, *tensor.stride()))
        if kernel.cuda is None or not static or any(tensor.device.type != "cuda" for tensor in tensors):
            continue
        # A launcher refuses some calls, at any size; it will refuse the real one as well.
        with compat.fresh_fake_mode(tensors), contextlib.suppress(Exception):
            kernel.cuda(*arguments)


def start() -> None:
    """Start the processes: their imports take as long as tracing a model does."""
    _workers()


def submit(kernel: Any, arguments: tuple[Any, ...], options: Mapping[str, int], device: torch.device) -> None:
    """Have the specialisation of a ``triton.jit`` kernel compiled that a launch will need.

    Args:
        kernel: the kernel, known in its module by its own name.
        arguments: of the launch, fake tensors among them; the real ones are taken to start at multiples of 16 bytes.
        options: Triton's, ``num_warps`` for instance.
        device: CUDA device of the launch.
    """
    typed = tuple(a.dtype if isinstance(a, torch.Tensor) else a for a in arguments)
    name = (kernel.fn.__module__, kernel.fn.__name__)
    key = (name, tuple(map(_specialised, typed)), tuple(options.items()), device.index)
    if key not in _SUBMITTED and _workers():
        done: concurrent.futures.Future[None] = concurrent.futures.Future()
        _SUBMITTED[key] = done
        target = _target(device.index or 0)
        _QUEUE.put(((*name, typed, dict(options), target, cache_directory(device)), done))


def wait() -> None:
    """Return when all that was submitted is compiled, or took so long that it is better not to wait for it."""
    pending = [done for done in _SUBMITTED.values() if not done.done()]
    for late in concurrent.futures.wait(pending, timeout=_LONGEST_SECONDS).not_done:
        late.cancel()  # nobody waits for it again


def cache_directory(device: torch.device) -> str:
    """Where Triton keeps what it compiled: where Inductor will tell it to, and this process from now on."""
    return os.environ.setdefault("TRITON_CACHE_DIR", compat.triton_cache_directory(device.index or 0))


def _specialised(argument: Any) -> Any:
    """What Triton sees of an argument: numbers that it treats alike are compiled once."""
    if isinstance(argument, int) and not isinstance(argument, bool):
        return argument if abs(argument) <= 512 else (argument % 16 == 0, abs(argument) < 2**31)
    return argument


@functools.cache
def _target(device: int) -> tuple[str, int, int]:
    """What Triton compiles for: backend, compute capability as 90, threads of a warp."""
    major, minor = torch.cuda.get_device_capability(device)
    return "cuda", 10 * major + minor, 32


_QUEUE: queue.SimpleQueue[tuple[Any, concurrent.futures.Future[None]]] = queue.SimpleQueue()


@functools.cache
def _workers() -> tuple[threading.Thread, ...]:
    """A thread for each process; none without processors to spare, or where Inductor may compile in one thread only:
    then launches compile."""
    allowed = min(_processors(), compat.compile_threads())
    count = min(4, allowed // 2) if allowed >= 4 else 0
    threads = tuple(threading.Thread(target=_serve, name=f"hadamard-compile-{n}", daemon=True) for n in range(count))
    for thread in threads:
        thread.start()
    return threads


def _processors() -> int:
    """Those that this process may use, shared with the other ranks of its machine."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return usable // max(int(ranks) if ranks.isdigit() else 1, 1)


def _forget() -> None:
    """In a forked child, which has none of the threads."""
    _workers.cache_clear()
    _SUBMITTED.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _serve() -> None:
    """Hand jobs to one process, which starts now, and again when it is needed again."""
    process = _process()
    while True:
        try:
            job, done = _QUEUE.get(timeout=_IDLE_SECONDS)
        except queue.Empty:
            if process is not None:
                process.kill()  # not by the end of its input: a forked child may hold that open
                process.wait()
                process = None
            continue
        if process is None or process.poll() is not None:
            process = _process()
        with contextlib.suppress(Exception):
            assert process is not None and process.stdin is not None and process.stdout is not None
            pickle.dump(job, process.stdin)
            process.stdin.flush()
            process.stdout.read(1)
        with contextlib.suppress(concurrent.futures.InvalidStateError):  # given up meanwhile
            done.set_result(None)


def _process() -> subprocess.Popen[bytes] | None:
    """A process that ends when its input does; None where the system allows none."""
    folders = [folder or _STARTED_IN for folder in sys.path if isinstance(folder, str)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    command = [sys.executable, "-m", f"{__package__}.triton_worker"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    try:
        return subprocess.Popen(command, env=environment, **pipes)  # type: ignore[call-overload, no-any-return]
    except (OSError, TypeError):  # no such program, no more processes; an embedded Python names no program
        return None
