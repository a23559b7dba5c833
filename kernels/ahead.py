"""Compiling the Triton kernels of a graph while Inductor is still busy with the rest of it.

A kernel compiled when it is first launched would keep the first step waiting, one kernel after the other. Here a call
is made with fake tensors: the launcher decides everything as usual, down to ``submit``, which gets what the compiler
must be asked. Other processes compile (``triton_worker.py``), because a thread would take Python's lock from Inductor,
and leave the result in Triton's cache on disk. Who launches a kernel waits for that one, then finds it in that cache;
one that no process has begun is compiled where it is launched.

A compilation that fails here fails again, and is reported, where the kernel is launched.
Everything is logged: ``TORCH_LOGS="+hadamard_fx"``, or the level DEBUG of the logger ``hadamard_fx``.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import importlib
import json
import logging
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch

from hadamard_fx import compat

from . import generated
from .library import Kernel

__all__ = ["cache_directory", "compare", "prepare", "start", "submit", "wait"]

_SUBMITTED: dict[Any, concurrent.futures.Future[dict[str, str]]] = {}
"""Who launches a kernel finds what another process made of it: its ``triton_worker.identity``, empty for nothing."""
_LONGEST_SECONDS = 120
_STARTED_IN = os.getcwd()
_LOG = logging.getLogger(__package__)
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
    """Start the processes, before there is anything to compile: they load Triton, which takes them half a second."""
    _workers()


def submit(kernel: Any, arguments: tuple[Any, ...], options: Mapping[str, Any], device: torch.device) -> None:
    """Have the specialisation of a ``triton.jit`` kernel compiled that a launch will need.

    Args:
        kernel: the kernel, known in its module by its own name.
        arguments: of the launch, fake tensors first; the real ones are taken to start at multiples of 16 bytes.
        options: Triton's, ``num_warps`` for instance.
        device: CUDA device of the launch.
    """
    key = _key(kernel, arguments, options, device)
    if key not in _SUBMITTED and _workers():
        tensors = tuple(str(a.dtype) for a in arguments if isinstance(a, torch.Tensor))
        name = (_module(kernel), kernel.fn.__name__)
        target = _target(device.index or 0)
        values, cache = arguments[len(tensors) :], cache_directory(device)
        job = (*name, tensors, values, dict(options), target, cache, _naming(target[1]))
        done: concurrent.futures.Future[dict[str, str]] = concurrent.futures.Future()
        _SUBMITTED[key] = done
        _LOG.debug("%s queued: %s %s %s", _name(key), tensors, arguments[len(tensors) :], dict(options))
        _QUEUE.put((_name(key), job, done))


def wait(kernel: Any, arguments: tuple[Any, ...], options: Mapping[str, Any], device: torch.device) -> None:
    """Return when what a launch needs is compiled, or no process works on it, or took so long that it is better not
    to wait for it. The arguments are those of ``submit``, with real tensors."""
    key = _key(kernel, arguments, options, device)
    done = _SUBMITTED.get(key)
    if done is None:
        _LOG.debug("%s was not compiled ahead: %s", _name(key), key)
    elif done.cancel():
        _LOG.debug("%s is still queued: it is compiled where it is launched", _name(key))
    elif not done.done():
        begin = time.perf_counter()
        if concurrent.futures.wait((done,), timeout=_LONGEST_SECONDS).not_done:
            _SUBMITTED.pop(key, None)  # nobody waits for it again
        _LOG.debug("%s waited for, %.2f s", _name(key), time.perf_counter() - begin)


def compare(
    kernel: Any, arguments: tuple[Any, ...], options: Mapping[str, Any], device: torch.device, made: Any
) -> None:
    """Log in what a kernel differs from the one that was compiled ahead for this launch, if it does: then it was not
    found in the cache. The arguments are those of ``submit``, ``made`` is Triton's compiled kernel."""
    key = _key(kernel, arguments, options, device)
    done = _SUBMITTED.get(key)
    if not _LOG.isEnabledFor(logging.DEBUG) or done is None or not done.done() or done.cancelled():
        return
    theirs = done.result()
    if theirs.get("hash", made.hash) == made.hash:
        return
    from .triton_worker import identity

    ours = identity(made)
    differing = {part: (theirs.get(part), ours.get(part)) for part in ours if theirs.get(part) != ours.get(part)}
    _LOG.debug("%s was compiled again, as it differs from the one that was compiled ahead: %s", _name(key), differing)


def cache_directory(device: torch.device) -> str:
    """Where Triton keeps what it compiled: where Inductor will tell it to, and this process from now on."""
    return os.environ.setdefault("TRITON_CACHE_DIR", compat.triton_cache_directory(device.index or 0))


def _module(kernel: Any) -> str:
    """Where another process finds a kernel: a generated one in its file."""
    module: str = kernel.fn.__module__
    return str(kernel.fn.__code__.co_filename) if module.startswith(generated.PREFIX) else module


def _key(kernel: Any, arguments: tuple[Any, ...], options: Mapping[str, Any], device: torch.device) -> Any:
    """Equal for launches that Triton compiles once."""
    seen = tuple(map(_specialised, kernel.params, arguments))
    return kernel.fn.__module__, kernel.fn.__name__, seen, tuple(options.items()), device.index or 0


def _name(key: Any) -> str:
    """A kernel in the log: what is printed of the key is the same where it is queued and where it is launched."""
    return f"{key[1]} {hash(key) & 0xFFFFFF:06x}"


def _specialised(parameter: Any, argument: Any) -> Any:
    """What Triton sees of an argument: the value of a constant, the type of a number and what it is a multiple of."""
    if isinstance(argument, torch.Tensor):
        return argument.dtype
    if parameter.is_constexpr or argument is None:
        return type(argument), argument
    if isinstance(argument, int) and not isinstance(argument, bool):
        width = 32 if -(2**31) <= argument < 2**31 else 64 if argument < 2**63 else "unsigned"
        if parameter.do_not_specialize:
            return (width,)
        return 1 if argument == 1 else (width, argument % 16 == 0 and not parameter.do_not_specialize_on_alignment)
    return type(argument)


@functools.cache
def _naming(capability: int) -> Any:
    """``triton_worker.naming`` of this process; None where Triton is not as expected, and names may differ."""
    with contextlib.suppress(Exception):
        return importlib.import_module(f"{__package__}.triton_worker").naming(capability)
    return None


@functools.cache
def _target(device: int) -> tuple[str, int, int]:
    """What Triton compiles for: backend, compute capability as 90, threads of a warp."""
    major, minor = torch.cuda.get_device_capability(device)
    return "cuda", 10 * major + minor, 32


_Jobs: TypeAlias = queue.SimpleQueue[tuple[str, Any, concurrent.futures.Future[dict[str, str]]]]
_QUEUE: _Jobs = queue.SimpleQueue()


@functools.cache
def _workers() -> tuple[threading.Thread, ...]:
    """A thread for each process; none without processors to spare, or where Inductor may compile in one thread only:
    then launches compile."""
    allowed = min(_processors(), compat.compile_threads())
    count = min(4, allowed // 2) if allowed >= 4 else 0
    threads = tuple(
        threading.Thread(target=_serve, args=(_QUEUE,), name=f"hadamard-compile-{n}", daemon=True) for n in range(count)
    )
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


def _serve(jobs: _Jobs) -> None:
    """Hand jobs to one process, which starts now, and again when it is needed again."""
    process = _process()
    while True:
        try:
            name, job, done = jobs.get(timeout=_IDLE_SECONDS)
        except queue.Empty:
            if process is not None:
                process.kill()  # not by the end of its input: a forked child may hold that open
                process.wait()
                process = None
            continue
        if not done.set_running_or_notify_cancel():
            continue  # compiled where it was launched
        if process is None or process.poll() is not None:
            process = _process()
        begin = time.perf_counter()
        answer: dict[str, Any] = {"error": "the process ended"}
        with contextlib.suppress(Exception):
            assert process is not None and process.stdin is not None and process.stdout is not None
            pickle.dump(job, process.stdin)
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
        done.set_result(answer.get("identity", {}))
        how = f"not compiled: {answer['error']}" if "error" in answer else "compiled"
        _LOG.debug("%s %s, %.2f s", name, how, time.perf_counter() - begin)


def _process() -> subprocess.Popen[bytes] | None:
    """A process, ready for jobs, that ends when its input does; None where the system allows none."""
    folders = [folder or _STARTED_IN for folder in sys.path if isinstance(folder, str)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    # Not as a module: that would import the package, hence torch. -P: nothing is imported from the folder of the file.
    package = Path(compat.__file__).absolute().parent
    command = [sys.executable, "-P", str(Path(__file__).absolute().with_name("triton_worker.py")), str(package)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    begin = time.perf_counter()
    try:
        process = subprocess.Popen(command, env=environment, **pipes)  # type: ignore[call-overload]
    except (OSError, TypeError):  # no such program, no more processes; an embedded Python names no program
        return None
    greeting = process.stdout.readline()
    _LOG.debug("a process to compile %s, %.2f s", "is ready" if greeting else "ended", time.perf_counter() - begin)
    return process  # type: ignore[no-any-return]
