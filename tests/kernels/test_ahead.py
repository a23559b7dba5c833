"""What is compiled ahead is what a launch will ask for."""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hadamard_fx.kernels import ahead, library

KERNELS = library.load()
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(ahead, "submit", lambda *arguments: calls.append(arguments))
    return calls


def test_a_call_with_fake_tensors_names_its_kernel(submitted: list[tuple[Any, ...]]) -> None:
    with FakeTensorMode():
        x = torch.empty(4096, 768, dtype=torch.bfloat16, device="cuda")
        seed = torch.empty((), dtype=torch.int64, device="cuda")
    ahead.prepare(
        [
            (KERNELS["compress_tokens"], (x, seed, 16, 8, 8, "channel", "stochastic", 0, True)),
            (KERNELS["quantize_rows"], (x, seed, 16, 4, "tensor", "stochastic", "int8")),
        ]
    )
    names = [kernel.fn.__name__ for kernel, *_ in submitted]
    assert names == ["_tokens_kernel", "_rows_kernel", "_rows_kernel"]  # the second form takes two launches
    for kernel, arguments, options, device in submitted:
        assert len(arguments) == len(kernel.arg_names) and options["num_warps"] and device.type == "cuda"


def test_other_calls_are_passed_over(submitted: list[tuple[Any, ...]]) -> None:
    arguments = (None, 16, 4, "token", "nearest", "int8")
    ahead.prepare([(KERNELS["quantize_rows"], (torch.randn(4, 16), *arguments))])
    assert not submitted
    with FakeTensorMode():
        x = torch.empty(4, 16, dtype=torch.bfloat16, device="cuda")
    ahead.prepare([(KERNELS["quantize_rows"], (x, None, 16, 4, "token", "nearest", "no such carrier"))])
    assert not submitted


def test_a_process_without_a_device_fills_the_cache(submitted: list[tuple[Any, ...]], tmp_path: Path) -> None:
    with FakeTensorMode():
        x = torch.empty(64, 96, dtype=torch.bfloat16, device="cuda")
    ahead.prepare([(KERNELS["quantize_rows"], (x, None, 16, 4, "token", "nearest", "int8"))])
    kernel, arguments, options, _ = submitted[0]
    typed = tuple(a.dtype if isinstance(a, torch.Tensor) else a for a in arguments)
    job = (kernel.fn.__module__, kernel.fn.__name__, typed, options, ("cuda", 90, 32), str(tmp_path))
    process = ahead._process()
    assert process is not None
    answers, _ = process.communicate(pickle.dumps(job) * 2, timeout=120)
    assert (answers, process.returncode) == (b"..", 0)
    assert [path.name for path in tmp_path.rglob("*.cubin")] == ["_rows_kernel.cubin"]


NAMES = """
from hadamard_fx.kernels import triton_quantized_mm as products, triton_rows as rows, triton_tokens as tokens
kernels = [rows._rows_kernel, tokens._tokens_kernel, products.tiles_kernel, products.stream_kernel]
print(sorted((kernel.fn.__name__, kernel.cache_key) for kernel in {}(kernels)))
"""


def test_a_kernel_has_one_name_whoever_comes_first() -> None:
    commands = ([sys.executable, "-c", NAMES.format(order)] for order in ("list", "reversed"))
    first, second = (subprocess.run(command, capture_output=True, check=True).stdout for command in commands)
    assert first == second


def test_what_cannot_be_compiled_ahead_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that is no text, and no program to run: the thread lives, and says that it is done."""
    monkeypatch.setattr(sys, "path", [Path("/nowhere"), *sys.path])
    process = ahead._process()
    assert process is not None
    process.communicate(timeout=60)
    monkeypatch.setattr(sys, "executable", None)
    assert ahead._process() is None
    monkeypatch.setattr(ahead, "_processors", lambda: 4)
    monkeypatch.setattr(ahead.compat, "compile_threads", lambda: 4)
    monkeypatch.setattr(ahead, "_target", lambda device: ("cuda", 90, 32))
    monkeypatch.setattr(ahead, "_SUBMITTED", {})
    ahead._workers.cache_clear()
    from hadamard_fx.kernels import triton_rows

    ahead.submit(triton_rows._rows_kernel, (), {}, torch.device("cuda", 0))
    begin = time.monotonic()
    ahead.wait()
    assert time.monotonic() - begin < 10
    ahead._workers.cache_clear()
