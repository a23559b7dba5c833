"""The operators of this project: ``torch.ops.hadamard.*``, each declared by one file of this folder.

A kernel is one ``Kernel`` record: the paper's formula (``reference``), a functional PyTorch form (``cpu``, which the
launchers are tested against), a ``fake`` that knows shapes, a launcher for CUDA (``cuda``) and one for the CPU
(``native``), and its ``traffic``. The operators are pure functions and opaque in every graph: on every device a call of
this project's own kernel.

Files named ``triton_*.py`` and ``gluon_*.py`` hold Triton bodies and need Triton to import; nothing else does. Files
named ``cpp_*.py`` hold the C++ of the CPU launchers, compiled when one first runs. All are imported on first use.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from hadamard_fx import compat
from hadamard_fx.errors import DeviceError, KernelError

from .replay import Sites
from .traffic import Traffic

__all__ = [
    "KERNELS",
    "NAMESPACE",
    "Kernel",
    "differentiate",
    "failure",
    "load",
    "register",
    "source_digest",
    "triton_bodies",
]

NAMESPACE = "hadamard"
_FOLDER = Path(__file__).resolve().parent
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
# The kernels take any strides: a demand for fixed ones makes Inductor copy inputs that other users share.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout)


@dataclass(frozen=True)
class Kernel:
    """One operator and everything that is known about it.

    Attributes:
        name: of the operator, ``"quantize_rows"`` for ``torch.ops.hadamard.quantize_rows``.
        schema: arguments and results in torch's schema language, ``"(Tensor x, int order) -> (Tensor, Tensor)"``.
        reference: the formula as the papers write it, in float64, for tests and for readers.
        cpu: the same in pure functional PyTorch: traceable with symbolic sizes, no data-dependent branch.
        fake: shapes, dtypes and strides of the results (the contract of every implementation).
        traffic: bytes and operations of one launch as a function of its sizes.
        cuda: launcher on CUDA tensors; it imports Triton when it first runs.
        native: launcher on CPU tensors, compiled C++ behind it; where it is None, ``cpu`` runs there.
        tags: torch's operator tags.
    """

    name: str
    schema: str
    reference: Callable[..., Any]
    cpu: Callable[..., Any]
    fake: Callable[..., Any]
    traffic: Callable[..., Traffic]
    cuda: Callable[..., Any] | None = None
    native: Callable[..., Any] | None = None
    tags: tuple[torch.Tag, ...] = field(default=_TAGS, repr=False)

    @property
    def op(self) -> Any:
        """The overload, as it stands in a graph: ``torch.ops.hadamard.<name>.default``."""
        return getattr(getattr(torch.ops, NAMESPACE), self.name).default


KERNELS: dict[str, Kernel] = {}
"""Every registered kernel, by operator name. Complete after ``load()``."""


def register(
    kernel: Kernel, cuda: Callable[..., Any] | None = None, native: Callable[..., Any] | None = None
) -> Kernel:
    """Declare ``torch.ops.hadamard.<kernel.name>`` and return the kernel, CUDA launcher included.

    Args:
        kernel: the record; its ``cpu`` may return any strides, the operator makes them contiguous.
        cuda, native: launchers, where the record does not hold them already.

    Raises:
        ValueError: a kernel of that name is already registered.
    """
    if kernel.name in KERNELS:
        raise ValueError(f"two kernels call themselves {kernel.name!r}")
    if cuda is not None:
        kernel = Kernel(**{**vars(kernel), "cuda": cuda})
    if native is not None:
        kernel = Kernel(**{**vars(kernel), "native": native})
    qualified = f"{NAMESPACE}::{kernel.name}"
    _LIBRARY.define(kernel.name + kernel.schema, tags=kernel.tags)
    _LIBRARY.impl(kernel.name, kernel.native or _contiguous(kernel.cpu), "CPU")
    if kernel.cuda is not None:
        _LIBRARY.impl(kernel.name, kernel.cuda, "CUDA")
    torch.library.register_fake(qualified, kernel.fake, lib=_LIBRARY)
    KERNELS[kernel.name] = kernel
    return kernel


def differentiate(kernel: Kernel, backward: Callable[..., Any], setup: Callable[..., None]) -> None:
    """Give a registered operator a gradient; both functions as for ``torch.library.register_autograd``."""
    torch.library.register_autograd(f"{NAMESPACE}::{kernel.name}", backward, setup_context=setup, lib=_LIBRARY)


def _contiguous(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with contiguous results, which the fakes promise; the readable forms may return views."""

    @functools.wraps(function)
    def implementation(*args: Any, **kwargs: Any) -> Any:
        results = function(*args, **kwargs)
        if isinstance(results, torch.Tensor):
            return results.contiguous()
        return tuple(result.contiguous() for result in results)

    return implementation


@functools.cache
def load() -> dict[str, Kernel]:
    """Import every file of this folder once, so that all operators exist; returns ``KERNELS``."""
    for module in pkgutil.iter_modules([str(_FOLDER)]):
        if not module.name.startswith(("triton_", "gluon_", "cpp_")):
            importlib.import_module(f"{__package__}.{module.name}")
    for kernel in KERNELS.values():
        if kernel.cuda is not None:
            compat.call_at_sites(kernel.op, Sites(kernel.op))
    return KERNELS


@functools.cache
def source_digest() -> str:
    """SHA-256 over the names and sources of all kernels: part of every cache key (torch hashes none of them)."""
    digest = hashlib.sha256()
    for path in sorted(_FOLDER.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@functools.cache
def triton_bodies(name: str, language: str = "triton") -> ModuleType:
    """The module ``triton_<name>`` of this folder, or ``gluon_<name>``.

    Raises:
        DeviceError: Triton is not installed.
    """
    try:
        return importlib.import_module(f"{__package__}.{language}_{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "triton":
            raise
        raise DeviceError(
            "the kernels of hadamard-fx on this device are written in Triton, which is not installed: "
            'install triton, or compile with options={"profile": "exact"}'
        ) from error


def failure(kernel: str, cause: BaseException, **shape: object) -> KernelError:
    """The error for a kernel that did not compile or launch: ``raise failure("quantize_rows", error, R=3)``."""
    return KernelError(kernel, " ".join(f"{key}={value}" for key, value in shape.items()), cause)
