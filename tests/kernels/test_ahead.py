"""What is compiled ahead is what a launch will ask for."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import pickle
import queue
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
    """Under the name that a process with torch looks for."""
    with FakeTensorMode():
        x = torch.empty(64, 96, dtype=torch.bfloat16, device="cuda")
    ahead.prepare([(KERNELS["quantize_rows"], (x, None, 16, 4, "token", "nearest", "int8"))])
    kernel, arguments, options, _ = submitted[0]
    tensors = tuple(str(a.dtype) for a in arguments if isinstance(a, torch.Tensor))
    values = arguments[len(tensors) :]
    names = (kernel.fn.__module__, kernel.fn.__name__)
    job = (*names, tensors, values, options, ("cuda", 90, 32), str(tmp_path))
    process = ahead._process()
    assert process is not None
    answers, _ = process.communicate(pickle.dumps(job) * 2 + pickle.dumps((*names, (), *job[3:])), timeout=120)
    first, second, third = map(json.loads, answers.decode().splitlines())
    assert second["seconds"] < first["seconds"] and third["error"] and process.returncode == 0
    (made,) = tmp_path.rglob("*.cubin")
    assert first["identity"] == second["identity"]
    assert json.loads(made.with_suffix(".json").read_text())["hash"] == first["identity"]["hash"]
    script = f"""
import pickle, sys, torch
from hadamard_fx.kernels import triton_rows, triton_worker
triton_worker.driver.set_active(triton_worker._Described(("cuda", 90, 32)))
tensors, values, options = pickle.loads({pickle.dumps((tensors, values, options))!r})
tensors = [getattr(torch, name.split(".")[1]) for name in tensors]
print(triton_rows._rows_kernel.warmup(*tensors, *values, grid=(1,), **options).hash)
"""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("*.cubin")) == [made]
    assert json.loads(made.with_suffix(".json").read_text())["hash"] == done.stdout.strip()


OTHER_ASSEMBLER = """#!/bin/sh
# Another build of the same release.
[ "$1" = --version ] && {ptxas} --version | sed 's/Build .*/Build another/' || exec {ptxas} "$@"
"""


def test_kernels_have_one_name_though_inductor_chose_another_assembler(tmp_path: Path) -> None:
    """After Triton asked this process's own for its version, which it does once."""
    script = f"""
import os, pickle, stat, sys, torch
from pathlib import Path
from triton import knobs
from triton.backends.nvidia.compiler import get_ptxas, get_ptxas_version
from hadamard_fx.kernels import ahead, triton_rows, triton_worker
get_ptxas_version(90)
other = Path(sys.argv[1], "ptxas")
other.write_text({OTHER_ASSEMBLER!r}.format(ptxas=get_ptxas(90).path))
other.chmod(0o755)
os.environ["TRITON_PTXAS_PATH"] = os.environ["TRITON_PTXAS_BLACKWELL_PATH"] = str(other)
os.environ["TRITON_CACHE_DIR"] = cache = sys.argv[1] + "/cache"
tensors = ("torch.bfloat16", "torch.int8", "torch.float32", "torch.float32", "torch.bfloat16")
values = (64, 96, 96, 96, 0.5, 7, 16, 4, 0, triton_rows.matrix_dtype(torch.bfloat16), 0, 1, True, 16, 8, 16)
options = {{"num_warps": 4, "enable_fp_fusion": False}}
names = ("hadamard_fx.kernels.triton_rows_kernel", "_rows_kernel")
job = (*names, tensors, values, options, ("cuda", 90, 32), cache, ahead._naming(90))
said = [ahead._process().communicate(pickle.dumps(j), timeout=120)[0].decode().strip() for j in (job[:-1], job)]
print(",".join(said))
triton_worker.driver.set_active(triton_worker._Described(("cuda", 90, 32)))
typed = [getattr(torch, name.split(".")[1]) for name in tensors]
print(triton_rows._rows_kernel.warmup(*typed, *values, grid=(1,), **options).hash)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stderr
    answers, ours = done.stdout.splitlines()
    apart, alike = json.loads(f"[{answers}]")  # without our naming the name follows the other assembler
    assert alike["identity"]["hash"] == ours != apart["identity"]["hash"]


def test_the_process_loads_no_torch() -> None:
    script = f"""
import runpy, sys
worker = runpy.run_path({ahead.__file__.replace("ahead.py", "triton_worker.py")!r})
sys.argv[1:] = [{str(Path(ahead.compat.__file__).parent)!r}]
sys.stdin = open("/dev/null")
worker["main"]()
assert "torch" not in sys.modules and "hadamard_fx.kernels.triton_rows_kernel" in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_launches_that_triton_compiles_once_have_one_key() -> None:
    from hadamard_fx.kernels.triton_rows import _rows_kernel

    tensors = (torch.empty(1),) * 5
    constants = (7, 16, 4, 1, None, 0, 1, True, 16, 1, 16)

    def key(*numbers: Any, constants: tuple[Any, ...] = constants, device: str = "cuda:0", **options: Any) -> Any:
        return ahead._key(_rows_kernel, (*tensors, *numbers, *constants), options, torch.device(device))

    base = key(32, 48, 64, 160, 0.5)
    assert key(512, 4096, 16, 48, 0.25) == base == key(32, 48, 64, 160, 0.5, device="cuda")
    others = [
        key(33, 48, 64, 160, 0.5),  # not a multiple of 16
        key(1, 48, 64, 160, 0.5),  # a constant to Triton
        key(32, 48, 64, 2**32, 0.5),
        key(32, 48, 64, 160, 0.5, device="cuda:1"),
        key(32, 48, 64, 160, 0.5, num_warps=8),
        key(32, 48, 64, 160, 0.5, constants=(127, *constants[1:])),
        key(32, 48, 64, 160, 0.5, constants=(*constants[:6], True, *constants[7:])),
    ]
    assert len({base, *others}) == 1 + len(others)


@pytest.mark.parametrize("operator", ["quantize_rows", "compress_tokens"])
@pytest.mark.parametrize("rounding", ["nearest", "pseudo_stochastic"])
def test_rounding_to_nearest_sees_the_rounded_product(
    submitted: list[tuple[Any, ...]], tmp_path: Path, operator: str, rounding: str
) -> None:
    """v·factor + ROUNDER in one instruction would round exact halves otherwise than the CPU does."""
    with FakeTensorMode():
        x = torch.empty(512, 96, dtype=torch.bfloat16, device="cuda")
    calls = {
        "quantize_rows": (x, None, 16, 4, "token", rounding, "int8"),
        "compress_tokens": (x, None, 16, 8, 8, "channel", rounding, 0, False),
    }
    ahead.prepare([(KERNELS[operator], calls[operator])])
    ((kernel, arguments, options, _),) = submitted
    tensors = tuple(str(a.dtype) for a in arguments if isinstance(a, torch.Tensor))
    job = (kernel.fn.__module__, kernel.fn.__name__, tensors, arguments[len(tensors) :], options)
    process = ahead._process()
    assert process is not None
    process.communicate(pickle.dumps((*job, ("cuda", 90, 32), str(tmp_path))), timeout=120)
    (made,) = tmp_path.rglob("*.ptx")
    fused = made.read_text().count("fma.rn.f32")
    assert fused == 0 if rounding == "nearest" else fused > 0


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

    kernel, device = triton_rows._rows_kernel, torch.device("cuda", 0)
    ahead.submit(kernel, (), {}, device)
    begin = time.monotonic()
    ahead.wait(kernel, (), {}, device)
    ahead.wait(kernel, (1,), {}, device)  # never submitted
    assert time.monotonic() - begin < 10
    ahead._workers.cache_clear()


def test_who_launches_compiles_what_no_process_has_begun(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from hadamard_fx.kernels import triton_rows

    monkeypatch.setattr(ahead, "_workers", lambda: ("one that never takes a job",))
    monkeypatch.setattr(ahead, "_QUEUE", queue.SimpleQueue())
    monkeypatch.setattr(ahead, "_target", lambda device: ("cuda", 90, 32))
    monkeypatch.setattr(ahead, "_SUBMITTED", {})
    kernel, device = triton_rows._rows_kernel, torch.device("cuda", 0)
    with caplog.at_level(logging.DEBUG, "hadamard_fx.kernels"):
        ahead.submit(kernel, (), {}, device)
        ahead.wait(kernel, (), {}, device)
    _, _, done = ahead._QUEUE.get_nowait()
    assert not done.set_running_or_notify_cancel()
    assert ["queued" in message for message in caplog.messages] == [True, True]
