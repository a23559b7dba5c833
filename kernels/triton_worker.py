"""A process that compiles Triton kernels into the cache on disk, and never touches a device: see ``ahead.py``.

It is run as a file, and loads Triton and the files that hold bodies, neither torch nor the rest of the package, which
take many times as long. It reads pickled jobs from its input, one after the other, and answers each with a line of
JSON: the seconds that it took, and the error, or what the kernel is named by in the cache; the first line says that it
is ready.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import pickle
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import MockTensor

__all__ = ["compile_into_cache", "identity", "main", "naming"]

_BODIES = ("triton_rows_kernel", "triton_tokens_kernel", "triton_quantized_mm")


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
    tensors: tuple[str, ...],
    values: tuple[Any, ...],
    options: dict[str, Any],
    target: tuple[str, int, int],
    cache: str,
    naming: tuple[str, dict[str, str]] | None = None,
) -> dict[str, str]:
    """Compile one specialisation; returns its ``identity``.

    Args:
        module, name: of the ``triton.jit`` kernel; a generated one is named by its file.
        tensors: dtypes of the tensors of the launch, its first arguments: ``"torch.bfloat16"``.
        values: the other arguments.
        options: Triton's.
        target: backend, compute capability, threads of a warp.
        cache: directory.
        naming: what the process that launches has a part in the name of a kernel; see ``naming``.
    """
    os.environ["TRITON_CACHE_DIR"] = cache
    if naming is not None:
        _name_alike(*naming)
    driver.set_active(_Described(target))
    kernel = getattr(_module(module), name)
    made = kernel.warmup(*map(MockTensor, tensors), *values, grid=(1,), **options)
    # Before 3.7 Triton has a C compiler make a launcher for every signature, and keeps that in the cache as well.
    with contextlib.suppress(Exception):
        importlib.import_module("triton.backends.nvidia.driver").CudaLauncher(made.src, made.metadata)
    return identity(made)


def identity(made: Any) -> dict[str, str]:
    """What a compiled kernel is named by in Triton's cache: its hash, and whatever of its parts can be had.

    A process that launches compares them with those of the process that compiled ahead, to say why it had to compile
    again.
    """
    parts = {key: str(value) for key, value in made.metadata._asdict().items()}
    with contextlib.suppress(Exception):
        parts["source"] = str(made.src.hash())
    with contextlib.suppress(Exception):
        key = importlib.import_module("triton.runtime.cache").triton_key()
        parts["triton"] = hashlib.sha256(str(key).encode()).hexdigest()
    with contextlib.suppress(Exception):
        target = driver.active.get_current_target()
        parts["compiler"] = str(importlib.import_module("triton.compiler.compiler").make_backend(target).hash())
    with contextlib.suppress(Exception):
        parts["environment"] = str(importlib.import_module("triton._C.libtriton").get_cache_invalidating_env_vars())
    return {**parts, "hash": str(made.hash)}


def naming(capability: int) -> tuple[str, dict[str, str]]:
    """What this process names compiled kernels by, besides their sources: the version of the assembler, as it was when
    Triton first asked, and the variables that Triton lets decide.

    Inductor may name another assembler (TRITON_PTXAS_PATH) after the first question: this process goes on with the
    first answer, and one that it starts later would find another name for the same kernel.
    """
    compiler = importlib.import_module("triton.backends.nvidia.compiler")
    variables = importlib.import_module("triton._C.libtriton").get_cache_invalidating_env_vars()
    return str(compiler.get_ptxas_version(capability)), {str(key): str(value) for key, value in variables.items()}


def _name_alike(version: str, variables: dict[str, str]) -> None:
    """Name kernels as a process does whose ``naming`` this is."""
    for key in importlib.import_module("triton._C.libtriton").get_cache_invalidating_env_vars():
        os.environ.pop(key, None)
    os.environ.update(variables)
    vars(importlib.import_module("triton.backends.nvidia.compiler"))["get_ptxas_version"] = lambda *_: version


def _module(name: str) -> ModuleType:
    """A module of bodies by its name, a generated one by its file."""
    if name.endswith(".py"):
        generated: ModuleType = importlib.import_module("hadamard_fx.kernels.generated").import_file(name)
        return generated
    return importlib.import_module(name)


def _packages() -> None:
    """The package, whose folder is the argument, and this folder, without what importing the package runs."""
    for name, folder in (("hadamard_fx", sys.argv[1]), ("hadamard_fx.kernels", Path(__file__).absolute().parent)):
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package


def _prepare() -> None:
    """What Triton does once, before the first job: it reads itself, and looks for torch, to know its tensors."""
    absent = ModuleType("torch")
    absent.Tensor = type("Tensor", (), {})  # type: ignore[attr-defined]
    found = sys.modules.setdefault("torch", absent)
    with contextlib.suppress(Exception):
        importlib.import_module("triton.runtime.jit").mangle_type(1)
    if found is absent:
        del sys.modules["torch"]
    with contextlib.suppress(Exception):
        importlib.import_module("triton.runtime.cache").triton_key()


def main() -> None:
    """Serve until the input ends."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever a compiler prints is no answer
    _packages()
    _prepare()
    for name in _BODIES:
        importlib.import_module(f"hadamard_fx.kernels.{name}")
    answer: dict[str, object] = {"seconds": 0.0}
    while True:
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()
        try:
            job = pickle.load(requests)
        except EOFError:
            return
        begin, answer = time.perf_counter(), {}
        try:
            answer["identity"] = compile_into_cache(*job)
        except Exception as error:  # it fails again where the kernel is launched
            answer["error"] = type(error).__name__
        answer["seconds"] = time.perf_counter() - begin


if __name__ == "__main__":
    main()
