"""Launching ``quantized_mm`` on a CUDA device: which kernel, which tiles, remembered per shape.

The operator runs hundreds of times in a training step, so all that a shape decides is decided once (``_Launch``); after
that a call costs a dictionary look-up, the allocation of the result and the launch itself.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from hadamard_fx.errors import HadamardError

from . import autotune
from .library import failure, triton_bodies
from .quantized_mm import EXACT_COLUMNS, NAME, check

__all__ = ["CONFIGS", "Config", "Problem", "candidates", "launch", "run"]

Config = Mapping[str, Any]


def _config(kernel: str, m: int, n: int, k: int, stages: int, **flags: Any) -> dict[str, Any]:
    return {"kernel": kernel, "m": m, "n": n, "k": k, "group_m": 8, "warps": 8, "stages": stages, "per_sm": 1, **flags}


CONFIGS: tuple[Config, ...] = (
    _config("tiles", 128, 256, 128, 4, store="tma"),
    _config("tiles", 128, 256, 128, 3, store="tma"),
    _config("tiles", 128, 128, 128, 4, store="tma"),
    _config("stream", 128, 256, 128, 4),
    _config("stream", 128, 128, 128, 5),
)
"""What the tuner chooses from, the safest first. ``m``, ``n``, ``k``: the tile; ``store``: how the result leaves."""

GROUPED: tuple[Config, ...] = (
    _config("tiles", 128, 128, 128, 4, store="tma"),
    _config("stream", 128, 128, 128, 5),
)
"""The same where groups are rescaled: a second accumulator needs the registers of half a tile."""

POINTERS: tuple[Config, ...] = (
    _config("tiles", 128, 128, 64, 3, store="plain"),
    _config("stream", 128, 128, 64, 3),
)
"""Without the bulk copy engine: older devices, and operands that do not start or step by 16 bytes."""


class Problem(NamedTuple):
    """All that decides how a product is launched. The key of the remembered choices."""

    m: int
    n: int
    k: int
    carrier: torch.dtype
    dtype: torch.dtype
    group_k: int
    groups: int
    repeat_a: bool
    repeat_b: bool
    strides: tuple[int, int]
    tma: bool
    device: int

    @property
    def step(self) -> int:
        """Columns between two rescales, 0 for none: the groups, or where an int32 would overflow."""
        return self.group_k or (EXACT_COLUMNS if self.k > EXACT_COLUMNS else 0)

    @property
    def pieces(self) -> int:
        """Partial sums that are rescaled."""
        return self.groups if self.group_k else -(-self.k // EXACT_COLUMNS)

    def key(self) -> dict[str, object]:
        """What the tuner's answer depends on; sizes in steps of an eighth of their power of two."""
        return {
            "M": _bucket(self.m),
            "N": _bucket(self.n),
            "K": _bucket(self.k),
            "carrier": str(self.carrier),
            "dtype": str(self.dtype),
            "step": self.step,
            "tma": self.tma,
            "aligned": _aligned(self),
        }


def _bucket(size: int) -> int:
    unit = 1 << max(size.bit_length() - 4, 0)
    return -(-size // unit) * unit


def _aligned(problem: Problem) -> bool:
    return problem.n * problem.dtype.itemsize % 16 == 0


@functools.cache
def _device(index: int) -> tuple[int, int]:
    """(multiprocessors, compute capability as 90)."""
    properties = torch.cuda.get_device_properties(index)
    return properties.multi_processor_count, properties.major * 10 + properties.minor


def launch(
    a: torch.Tensor, b: torch.Tensor, scale_a: torch.Tensor, scale_b: torch.Tensor, group_k: int, dtype: torch.dtype
) -> torch.Tensor:
    """The product on the device of ``a``; the configuration is tuned when a shape (bucket) is new.

    Raises:
        DeviceError, KernelError: see ``quantized_mm.cuda``.
    """
    a, b, scale_a, scale_b = _k_major(a), _k_major(b), scale_a.contiguous(), scale_b.contiguous()
    out = torch.empty((a.shape[0], b.shape[0]), dtype=dtype, device=a.device)
    problem = _problem(a, b, scale_a, scale_b, group_k, dtype)
    config = _CHOSEN.get(problem)
    if config is not None and problem.device == torch.cuda.current_device():
        run(config, problem, a, b, scale_a, scale_b, out)
        return out
    check(a, b, scale_a, scale_b, group_k)
    if out.numel() == 0 or problem.k == 0:
        return out.zero_()
    with torch.cuda.device(a.device):
        try:
            config = _choose(problem, a, b, scale_a, scale_b, out)
            run(config, problem, a, b, scale_a, scale_b, out)
        except HadamardError:
            raise
        except Exception as error:
            raise failure(NAME, error, M=problem.m, N=problem.n, K=problem.k, group_k=group_k) from error
    return out


def _k_major(operand: torch.Tensor) -> torch.Tensor:
    """The operand with its columns next to each other, copied only if they are not."""
    rows, k = operand.shape
    if (operand.stride(1) == 1 or k == 1) and (operand.stride(0) >= k or rows == 1):
        return operand
    return operand.contiguous()


def _choose(problem: Problem, *tensors: torch.Tensor) -> Config:
    """The remembered or newly tuned configuration; the launches of the tuner overwrite the result."""
    config = autotune.best(NAME, problem.key(), candidates(problem), lambda c: run(c, problem, *tensors))
    if not autotune.capturing():
        _CHOSEN[problem] = config
    return config


_CHOSEN: dict[Problem, Config] = {}


def _problem(
    a: torch.Tensor, b: torch.Tensor, scale_a: torch.Tensor, scale_b: torch.Tensor, group_k: int, dtype: torch.dtype
) -> Problem:
    m, k = a.shape
    stride_a, stride_b = a.stride(0), b.stride(0)
    index = a.device.index
    aligned = (stride_a | stride_b | a.data_ptr() | b.data_ptr()) % 16 == 0
    tma = aligned and _device(index)[1] >= 90
    shape_a, shape_b = scale_a.shape, scale_b.shape
    return Problem(
        m, b.shape[0], k, a.dtype, dtype, group_k, shape_a[0], shape_a[1] == 1, shape_b[1] == 1,
        (stride_a, stride_b), tma, index,
    )  # fmt: skip


def candidates(problem: Problem) -> list[Config]:
    """The configurations that are legal and not plainly wasteful for a problem, the safest first."""
    processors = _device(problem.device)[0]
    tma = problem.tma and problem.step % 32 == 0
    legal: list[Config] = []
    for config in (GROUPED if problem.step else CONFIGS) if tma else POINTERS:
        tiles = -(-problem.m // config["m"]) * -(-problem.n // config["n"])
        if config["kernel"] == "stream" and (tiles > 2 * processors or problem.k <= 4 * config["k"]):
            continue
        k = config["k"]
        while tma and problem.step % k:
            k //= 2
        store = "tma" if tma and _aligned(problem) and config.get("store") == "tma" else "plain"
        legal.append({**config, "k": k, "store": store, "tma": tma})
    return legal


def _allocate(size: int, alignment: int, stream: int | None) -> torch.Tensor:
    """Global memory for the descriptors of one launch."""
    del alignment, stream  # the allocator of torch aligns to 512 bytes and follows the current stream
    return torch.empty(size, dtype=torch.int8, device="cuda")


def run(
    config: Config,
    problem: Problem,
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Launch one configuration on the current device and stream."""
    bodies = triton_bodies(NAME)
    tile_m, tile_n, tile_k, step = config["m"], config["n"], config["k"], problem.step
    steps = -(-step // tile_k)
    blocks = problem.pieces * steps if step else -(-problem.k // tile_k)
    tiles = -(-problem.m // tile_m) * -(-problem.n // tile_n)
    processors = _device(problem.device)[0] * config["per_sm"]
    jump_a, jump_b = (scale_a.shape[1], scale_b.shape[1]) if problem.group_k else (0, 0)
    sizes = (
        problem.m, problem.n, problem.k, *problem.strides, problem.n, step,
        int(not problem.repeat_a), int(not problem.repeat_b), jump_a, jump_b, blocks,
    )  # fmt: skip
    constants = {
        "BLOCK_M": tile_m, "BLOCK_N": tile_n, "BLOCK_K": tile_k, "GROUP_M": config["group_m"], "STEPS": steps,
        "TMA": config["tma"], "IMPRECISE": config.get("imprecise"), "num_warps": config["warps"], "num_stages": config["stages"],
    }  # fmt: skip
    if config["tma"]:
        bodies.set_allocator(_allocate)  # kept per thread, and the backward runs in a thread of its own
    if config["kernel"] == "tiles":
        bodies.tiles_kernel[(min(tiles, processors),)](
            a, b, scale_a, scale_b, out, *sizes,
            TMA_STORE=config["store"] == "tma", FLATTEN=config.get("flatten", False), **constants,
        )  # fmt: skip
        return
    programs = min(processors, tiles * (blocks // max(steps, 1)))
    partial = torch.int32 if problem.carrier == torch.int8 and not step else torch.float32
    partials = torch.empty(2 * programs * tile_m * tile_n, dtype=partial, device=out.device)
    arrived = torch.zeros(tiles, dtype=torch.int32, device=out.device)
    bodies.stream_kernel[(programs,)](a, b, scale_a, scale_b, out, *sizes, partials, arrived, **constants)
