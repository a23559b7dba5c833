"""Every kernel compiles for devices below Hopper, without a device: they have no bulk copy engine."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hadamard_fx.kernels import ahead, library
from hadamard_fx.kernels import quantized_mm_configs as configs

KERNELS = library.load()
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def calls() -> list[tuple[library.Kernel, tuple[Any, ...]]]:
    """A layer's products, all dtypes of both, on a device of which only sizes are known."""
    with FakeTensorMode():
        x = torch.empty(4096, 768, dtype=torch.bfloat16, device="cuda")
        w = torch.empty(768, 768, dtype=torch.float32, device="cuda")
        bias = torch.empty(768, dtype=torch.bfloat16, device="cuda")
        seed = torch.empty((), dtype=torch.int64, device="cuda")
        a = torch.empty(4096, 768, dtype=torch.int8, device="cuda")
        b = torch.empty(768, 768, dtype=torch.int8, device="cuda")
        scale_a, scale_b = torch.empty(1, 4096, device="cuda"), torch.empty(1, 768, device="cuda")
    return [
        (KERNELS["compress_tokens"], (x, seed, 16, 8, 8, "channel", "stochastic", 0, True)),
        (KERNELS["quantize_rows"], (x, seed, 16, 4, "token", "stochastic", "int8")),
        (KERNELS["quantize_weight"], (w, 16, 4, "token", "int8")),
        (KERNELS["quantized_mm"], (a, b, scale_a, scale_b, 0, torch.bfloat16, bias)),
    ]


@pytest.mark.parametrize("capability", [80, 86, 89])
def test_kernels_compile(capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[tuple[Any, ...]] = []

    def submit(kernel: Any, arguments: tuple[Any, ...], options: dict[str, Any], device: torch.device) -> None:
        tensors = tuple(str(a.dtype) for a in arguments if isinstance(a, torch.Tensor))
        job = (kernel.fn.__module__, kernel.fn.__name__, tensors, arguments[len(tensors) :], options)
        jobs.append((*job, ("cuda", capability, 32), str(tmp_path / str(len(jobs)))))

    monkeypatch.setattr(ahead, "submit", submit)
    for module in ("quantized_mm_configs", "quantized_mm_cuda"):
        monkeypatch.setattr(f"hadamard_fx.kernels.{module}.device", lambda index: (108, capability))
    ahead.prepare(calls())
    names = [job[1] for job in jobs]
    assert {"_tokens_kernel", "_rows_kernel", "tiles_kernel"} <= set(names)
    process = ahead._process()
    assert process is not None
    process.communicate(b"".join(map(pickle.dumps, jobs)), timeout=300)
    missing = [names[number] for number in range(len(jobs)) if not list((tmp_path / str(number)).rglob("*.cubin"))]
    assert not missing


def test_older_devices_get_plain_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "device", lambda index: (108, 80))
    kernel, arguments = calls()[-1]
    assert kernel.name == "quantized_mm"
    posed = configs.problem(*arguments)
    assert not posed.tma and not any(entry["tma"] for entry in configs.candidates(posed))
