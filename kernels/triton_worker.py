"""A process that compiles Triton kernels into the cache on disk, and never touches a device: see ``ahead.py``.

It reads pickled jobs from its input, one after the other, and answers each with one byte.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import sys
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.runtime import driver

__all__ = ["compile_into_cache", "main"]


class _Described:
    """What Triton asks a driver for when it compiles and does not launch."""

    def __init__(self, target: tuple[str, int, int]) -> None:
        self.target = GPUTarget(*target)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_into_cache(
    module: str,
    name: str,
    arguments: tuple[Any, ...],
    options: dict[str, int],
    target: tuple[str, int, int],
    cache: str,
) -> None:
    """Compile one specialisation.

    Args:
        module, name: of the ``triton.jit`` kernel.
        arguments: of the launch, a dtype of torch for each tensor.
        options: Triton's.
        target: backend, compute capability, threads of a warp.
        cache: directory.
    """
    os.environ["TRITON_CACHE_DIR"] = cache
    driver.set_active(_Described(target))
    kernel = getattr(importlib.import_module(module), name)
    kernel.warmup(*arguments, grid=(1,), **options)


def main() -> None:
    """Serve until the input ends."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever a compiler prints is no answer
    for name in ("rows", "tokens", "quantized_mm"):
        importlib.import_module(f"{__package__}.triton_{name}")
    while True:
        try:
            job = pickle.load(requests)
        except EOFError:
            return
        with contextlib.suppress(Exception):  # it fails again where the kernel is launched
            compile_into_cache(*job)
        answers.write(b".")
        answers.flush()


if __name__ == "__main__":
    main()
