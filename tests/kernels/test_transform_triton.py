"""The Triton kernels of the transforms against the CPU path, bit for bit: in the interpreter, or on a device (``gpu``).

The inputs are multiples of 1/16 of small magnitude, so that every sum is exact whatever its order: then integers and
scales must be equal, not close.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from hadamard_fx.errors import KernelError
from hadamard_fx.kernels import library

KERNELS = library.load()
SEED = 0x0123456789ABCDEF
ROW_SHAPES = ((5, 37, 16), (3, 130, 64), (2, 300, 128), (1, 1, 2), (20, 16, 4), (3, 3072, 16), (2, 9000, 16))
TOKEN_SHAPES = (
    *((37, 5, 16, 8, 0), (37, 5, 16, 8, 16), (130, 3, 64, 10, 64), (300, 70, 16, 8, 128), (100, 7, 16, 10, 48)),
    *((512, 64, 16, 8, 0), (512, 192, 16, 16, 0), (600, 70, 32, 5, 0), (33 * 64, 70, 64, 33, 0)),
    *((1, 1, 2, 1, 0), (20, 40, 4, 4, 8), (150, 4, 128, 128, 0), (3000, 3, 16, 8, 0), (700, 3, 4, 1, 64)),
)


def exact(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return (torch.randint(-64, 65, shape, generator=generator) / 16).to(dtype)


def calls() -> list[tuple[str, tuple[Any, ...]]]:
    """(operator, arguments on the CPU)."""
    seed, cases = torch.tensor(SEED), []
    for index, (rows, columns, order) in enumerate(ROW_SHAPES):
        x = exact(rows, columns, dtype=(torch.bfloat16, torch.float32, torch.float16)[index % 3])
        for scale, rounding, carrier, bits in (
            ("token", "stochastic", "int8", 4),
            ("token", "pseudo_stochastic", "float8_e4m3", 4),
            ("tensor", "nearest", "int8", 8),
        ):
            cases.append(("quantize_rows", (x, seed, order, bits, scale, rounding, carrier)))
    for index, (tokens, channels, order, rank, group) in enumerate(TOKEN_SHAPES):
        x = exact(tokens, channels, dtype=(torch.bfloat16, torch.float32, torch.float16)[index % 3])
        for scale, rounding in (("channel", "stochastic"), ("tensor", ("nearest", "pseudo_stochastic")[index % 2])):
            cases.append(("compress_tokens", (x, seed, order, rank, 8, scale, rounding, group, not group)))
            if rank < order:
                cases.append((*cases[-1][:1], (*cases[-1][1], torch.tensor(-77))))
    cases.append(("quantize_rows", (exact(30, 9).t(), seed, 16, 4, "token", "stochastic", "int8")))
    cases.append(("compress_tokens", (exact(9, 50).t(), seed, 16, 8, 8, "channel", "stochastic", 32)))
    cases.append(("quantize_weight", (exact(50, 9), 16, 4, "token", "float8_e4m3")))
    cases.append(("quantize_weight", (exact(50, 9, dtype=torch.float32), 32, 8, "tensor", "int8")))
    return cases


def compare(name: str, arguments: tuple[Any, ...], device: str) -> str:
    """What differs between the CUDA launcher on ``device`` and the CPU path, "" for nothing."""
    kernel = KERNELS[name]
    assert kernel.cuda is not None
    moved = tuple(a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments)
    what = f"{name} {tuple(arguments[0].shape)} {arguments[0].dtype} {arguments[1:]}: "
    for actual, expected in zip(kernel.cuda(*moved), kernel.op(*arguments), strict=True):
        if (actual.shape, actual.dtype) != (expected.shape, expected.dtype):
            return what + f"{actual.shape} {actual.dtype} instead of {expected.shape} {expected.dtype}"
        wrong = int((actual.cpu().float() != expected.float()).sum())
        if wrong:
            return what + f"{wrong} of {expected.numel()} differ"
    return ""


def poison(device: str) -> str:
    """A NaN or inf must reach its own scale, and not the rows, channels or groups that share its tile."""
    cuda = {name: kernel.cuda for name, kernel in KERNELS.items()}
    for value in (float("nan"), float("inf"), -float("inf")):
        x = exact(70, 40)
        x[5, 33] = value
        x = x.to(device)
        scales = (
            (cuda["quantize_rows"](x, None, 16, 4, "token", "nearest", "int8")[1], [[0, 5]]),
            (cuda["compress_tokens"](x, None, 16, 8, 8, "channel", "nearest", 0)[1], [[0, 33]]),
            (cuda["compress_tokens"](x, None, 16, 8, 8, "channel", "nearest", 32)[1], [[0, 33]]),
            (cuda["quantize_weight"](x, 16, 4, "token", "int8")[1], [[0, 33]]),
            (cuda["quantize_rows"](x, None, 16, 4, "tensor", "nearest", "int8")[1], [[0, 0]]),
            (cuda["compress_tokens"](x, None, 16, 8, 8, "tensor", "nearest", 32)[1], [[0, 0]]),
        )
        for index, (scale, expected) in enumerate(scales):
            found = (~scale.isfinite()).nonzero().tolist()
            if found != expected:
                return f"{value} in case {index}: scales {found} are poisoned, not {expected}"
    return ""


def empty(device: str) -> str:
    for shape in ((0, 16), (16, 0)):
        x = torch.zeros(shape, device=device)
        for name, arguments in (
            ("quantize_rows", (None, 16, 4, "token", "nearest", "int8")),
            ("compress_tokens", (None, 16, 8, 8, "channel", "nearest", 32)),
            ("quantize_weight", (16, 4, "token", "int8")),
        ):
            problem = compare(name, (x.cpu(), *arguments), device)
            if problem:
                return problem
    return ""


def alternating(device: str) -> str:
    """Slabs that are quantised while others are still measured, and scratch memory that is left as zeros."""
    from hadamard_fx.kernels import triton_tokens, workspace

    taken: list[torch.Tensor] = []
    zeros, ahead = workspace.zeros, triton_tokens.AHEAD

    def remembered(count: int, like: torch.Tensor) -> torch.Tensor:
        taken.append(zeros(count, like))
        return taken[-1]

    x, seed = exact(700, 330), torch.tensor(SEED)
    workspace.zeros = remembered
    problems = []
    try:
        for triton_tokens.AHEAD in (1, 5, 9):
            triton_tokens._plan.cache_clear()
            for scale in ("channel", "tensor"):
                arguments = (x, seed, 16, 8, 8, scale, "stochastic", 0, True)
                problems.append(compare("compress_tokens", arguments, device))
    finally:
        workspace.zeros, triton_tokens.AHEAD = zeros, ahead
        triton_tokens._plan.cache_clear()
    if len(taken) != 6 or any(bool(scratch.any()) for scratch in taken):
        problems.append("scratch memory is not left as zeros")
    return "; ".join(filter(None, problems))


def guarded(device: str) -> str:
    """Partial sums end where their tensor ends, also where the padding of q makes a part of its own."""
    cuda = KERNELS["compress_tokens"].cuda
    assert cuda is not None
    made, empty_like = [], torch.empty

    def surrounded(*shape: Any, **options: Any) -> torch.Tensor:
        size = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
        if len(size) != 2 or options.get("dtype") is not torch.float32:
            return empty_like(*shape, **options)
        whole = torch.full((size[0] + 2, size[1]), 7.0, device=options["device"])
        made.append(whole)
        return whole[: size[0]]

    for order, rank, tokens in ((128, 100, 768), (32, 5, 768), (64, 33, 512)):
        torch.empty = surrounded
        try:
            cuda(exact(tokens, 70).to(device), None, order, rank, 8, "channel", "nearest", 0, True)
        finally:
            torch.empty = empty_like
    return "" if made and all(bool((whole[-2:] == 7).all()) for whole in made) else "a write behind the partial sums"


def main() -> int:
    """Every comparison in the interpreter: run by the test below in a process of its own."""
    problems = [*(compare(*call, device="cpu") for call in calls()), poison("cpu"), empty("cpu")]
    problems += [alternating("cpu"), guarded("cpu")]
    print("\n".join(filter(None, problems)))
    return any(problems)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_interpreter_gives_the_bits_of_the_cpu_path() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


@pytest.mark.gpu
@pytest.mark.parametrize("call", calls(), ids=lambda c: f"{c[0]}-{'x'.join(map(str, c[1][0].shape))}")
def test_device_gives_the_bits_of_the_cpu_path(call: tuple[str, tuple[Any, ...]]) -> None:
    assert not compare(*call, device="cuda")


@pytest.mark.gpu
def test_device_contains_poison_and_takes_nothing() -> None:
    assert not poison("cuda")
    assert not empty("cuda")
    assert not alternating("cuda")
    assert not guarded("cuda")


@pytest.mark.gpu
def test_what_does_not_compile_names_kernel_and_shape() -> None:
    from hadamard_fx.kernels import triton_rows

    tile = {"ROWS": 3, "PIECES": 1, "WIDTH": 16, "CHUNKS": 1, "HOLD": True, "num_warps": 4}  # no power of 2
    with pytest.raises(KernelError, match=r"quantize_rows.*R=4 K=16"):
        triton_rows.quantize_rows(torch.zeros(4, 16, device="cuda"), None, 16, 4, "token", "nearest", "int8", tile=tile)


def test_without_triton_the_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from hadamard_fx.errors import DeviceError

    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'triton'", name="triton")

    library.triton_bodies.cache_clear()
    monkeypatch.setattr(library.importlib, "import_module", missing)
    with pytest.raises(DeviceError, match="install triton"):
        library.triton_bodies("rows")


if __name__ == "__main__":
    raise SystemExit(main())
