"""Launching ``quantized_mm`` on a CUDA device.

The operator runs hundreds of times in a training step, so all that a shape decides is decided once (``Launch``); after
that a call costs a dictionary look-up, the allocation of the result and the launch itself.
"""

from __future__ import annotations

import threading
from typing import Any

import torch

from hadamard_fx.errors import HadamardError

from . import autotune
from .library import failure, triton_bodies
from .quantized_mm import NAME, check
from .quantized_mm_configs import Config, Problem, candidates, device, problem
from .quantized_mm_shares import deal

__all__ = ["Launch", "launch"]

_LAUNCHES: dict[Problem, Launch] = {}


def launch(
    a: torch.Tensor, b: torch.Tensor, scale_a: torch.Tensor, scale_b: torch.Tensor, group_k: int, dtype: torch.dtype
) -> torch.Tensor:
    """The product on the device of ``a``; the configuration is tuned when a shape (bucket) is new.

    Raises:
        DeviceError, KernelError: see ``quantized_mm.cuda``.
    """
    a, b, scale_a, scale_b = _k_major(a), _k_major(b), scale_a.contiguous(), scale_b.contiguous()
    out = torch.empty((a.shape[0], b.shape[0]), dtype=dtype, device=a.device)
    posed = problem(a, b, scale_a, scale_b, group_k, dtype)
    prepared = _LAUNCHES.get(posed)
    if prepared is not None and posed.ordinal == torch.cuda.current_device():
        prepared(a, b, scale_a, scale_b, out)
        return out
    check(a, b, scale_a, scale_b, group_k)
    if out.numel() == 0 or posed.k == 0:
        return out.zero_()
    with torch.cuda.device(a.device):
        try:
            _prepare(posed, a, b, scale_a, scale_b, out)(a, b, scale_a, scale_b, out)
        except HadamardError:
            raise
        except Exception as error:
            raise failure(NAME, error, M=posed.m, N=posed.n, K=posed.k, group_k=group_k) from error
    return out


def _k_major(operand: torch.Tensor) -> torch.Tensor:
    """The operand with its columns next to each other, copied only if they are not."""
    rows, k = operand.shape
    if (operand.stride(1) == 1 or k == 1) and (operand.stride(0) >= k or rows == 1):
        return operand
    return operand.contiguous()


def _prepare(posed: Problem, *tensors: torch.Tensor) -> Launch:
    """The launch with the remembered or newly tuned configuration; the tuner's launches overwrite the result."""
    prepared = _LAUNCHES.get(posed)
    if prepared is None and autotune.capturing():
        return Launch(candidates(posed)[0], posed)  # needs nothing from the host, unlike the others
    if prepared is None:
        entries = candidates(posed)
        made = {id(entry): Launch(entry, posed) for entry in entries}
        chosen = autotune.best(NAME, posed.key(), entries, lambda entry: made[id(entry)](*tensors))
        prepared = _LAUNCHES[posed] = made[id(chosen)]
    return prepared


class Launch:
    """A kernel with everything but its tensors. Called with a, b, scale_a, scale_b, out, on their device and stream."""

    def __init__(self, config: Config, posed: Problem) -> None:
        self.bodies = triton_bodies(NAME)
        tile_k, step = config["k"], posed.step
        steps = -(-step // tile_k)
        blocks = posed.pieces * steps if step else -(-posed.k // tile_k)
        tiles = -(-posed.m // config["m"]) * -(-posed.n // config["n"])
        programs = device(posed.ordinal)[0] * config["per_sm"]
        jumps = (1 if posed.repeat_a else posed.m, 1 if posed.repeat_b else posed.n) if posed.group_k else (0, 0)
        self.sizes: tuple[int, ...] = (
            posed.m, posed.n, posed.k, posed.stride_a, posed.stride_b, posed.n, step,
            int(not posed.repeat_a), int(not posed.repeat_b), *jumps, blocks,
        )  # fmt: skip
        self.tma, self.reuse, self.compiled = config["tma"], posed.aligned, None
        self.shared: tuple[int, int, torch.dtype] | None = None
        self.table: list[Any] = []
        self.dealt: list[torch.Tensor] = []
        constants = [config["m"], config["n"], tile_k, config["group_m"], steps, self.tma, config.get("promote")]
        if config["kernel"] == "tiles":
            self.kernel = self.bodies.tiles_kernel
            constants += [config["store"] == "tma", config.get("flatten", False)]
            programs = min(tiles, programs)
        else:
            self.kernel = self.bodies.stream_kernel
            hands = deal(programs, tiles, blocks // max(steps, 1))
            *self.table, slots = hands.table(max(steps, 1))
            partial = torch.int32 if posed.carrier == torch.int8 and not step else torch.float32
            self.shared = (slots * config["m"] * config["n"], tiles, partial)
            programs = len(hands.hands)
        self.grid, self.constants = (programs, 1, 1), tuple(constants)
        self.options = {"num_warps": config["warps"], "num_stages": config["stages"]}

    def __call__(self, *tensors: torch.Tensor) -> None:
        arguments: tuple[Any, ...] = (*tensors, *self.sizes)
        if self.shared is not None:
            size, tiles, dtype = self.shared
            if not self.dealt:
                self.dealt = _resident(self.table, tensors[0].device)
            partials = torch.empty(size, dtype=dtype, device=tensors[0].device)
            arguments += (partials, torch.zeros(tiles, dtype=torch.int32, device=tensors[0].device))
        arguments += (*self.dealt, *self.constants)
        if self.tma:
            self.bodies.set_allocator(_allocate)  # kept per thread, and the backward runs in a thread of its own
        if self.compiled is not None:
            self.compiled[self.grid](*arguments)  # past the binder, which costs more than the launch
            return
        compiled = self.kernel[self.grid](*arguments, **self.options)
        if self.reuse:  # every argument that Triton specialises on is part of the problem
            self.compiled = compiled


def _resident(tables: list[list[int]], device: torch.device) -> list[torch.Tensor]:
    """int32 tensors that outlive this call.

    Made in a thread of its own: Inductor's warm-up of a CUDA graph lets this thread allocate from the graph's pool
    only, and later hands such memory to others.
    """
    made: list[torch.Tensor] = []
    worker = threading.Thread(
        target=lambda: made.extend(torch.tensor(table, dtype=torch.int32, device=device) for table in tables)
    )
    worker.start()
    worker.join()
    return made


def _allocate(size: int, alignment: int, stream: int | None) -> torch.Tensor:
    """Global memory for the descriptors of one launch."""
    del alignment, stream  # torch's allocator aligns to 512 bytes and follows the current stream
    return torch.empty(size, dtype=torch.int8, device="cuda")
