"""Launching ``quantized_mm`` on a CUDA device.

The operator runs hundreds of times in a training step, so all that a shape decides is decided once (``Product``); after
that a call costs a dictionary look-up, the allocation of the result and the launch itself.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

from hadamard_fx import compat
from hadamard_fx.errors import HadamardError

from . import autotune, workspace
from .library import failure, triton_bodies
from .quantized_mm import NAME, check
from .quantized_mm_configs import PROMOTE, Config, Problem, candidates, device, problem
from .quantized_mm_shares import deal
from .replay import lent
from .triton_launch import Launch

__all__ = ["Product", "launch"]

_LAUNCHES: dict[Problem, Product] = {}


def launch(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    group_k: int,
    dtype: torch.dtype,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """The product on the device of ``a``; the configuration is tuned when a shape (bucket) is new.

    Raises:
        DeviceError, KernelError: see ``quantized_mm.cuda``.
    """
    a, b, scale_a, scale_b = _k_major(a), _k_major(b), scale_a.contiguous(), scale_b.contiguous()
    bias = None if bias is None else bias.contiguous()
    out = torch.empty((a.shape[0], b.shape[0]), dtype=dtype, device=a.device)
    posed = problem(a, b, scale_a, scale_b, group_k, dtype, bias)
    tensors = (a, b, scale_a, scale_b, out, scale_b if bias is None else bias)
    if compat.is_fake(a):
        check(a, b, scale_a, scale_b, group_k)
        for entry in candidates(posed) if out.numel() and posed.k else ():
            Product(entry, posed)(*tensors)
        return out
    prepared = _LAUNCHES.get(posed)
    if prepared is not None and posed.ordinal == torch.cuda.current_device():
        prepared(*tensors)
        return out
    check(a, b, scale_a, scale_b, group_k)
    if out.numel() == 0 or posed.k == 0:
        return out.zero_() if bias is None else out.copy_(bias.expand_as(out))
    with torch.cuda.device(a.device):
        try:
            _prepare(posed, *tensors)(*tensors)
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


def _prepare(posed: Problem, *tensors: torch.Tensor) -> Product:
    """The launch with the remembered or newly tuned configuration; the tuner's launches overwrite the result."""
    prepared = _LAUNCHES.get(posed)
    if prepared is None and autotune.capturing():
        return Product(candidates(posed)[0], posed)  # needs nothing from the host, unlike the others
    if prepared is None:
        entries = candidates(posed)
        made = {id(entry): Product(entry, posed) for entry in entries}
        chosen = autotune.best(NAME, posed.key(), entries, lambda entry: made[id(entry)](*tensors))
        prepared = _LAUNCHES[posed] = made[id(chosen)]
    return prepared


class Product:
    """A kernel with everything but its tensors. Called with a, b, scale_a, scale_b, out, bias (anything where there
    is none), on their device and stream."""

    def __init__(self, config: Config, posed: Problem) -> None:
        self.device = posed.ordinal
        self.prepared = _specialised(config, posed) if config["kernel"] == "specialised" else _plain(config, posed)
        self.dealt: list[torch.Tensor] = []

    def __call__(self, *tensors: torch.Tensor) -> None:
        *operands, out, bias = tensors
        if self.prepared.partials:
            tensors = (*operands, out, *self._shared(out), bias)
        elif self.prepared.placeholders:
            tensors = (*operands, out, out, out, out, out, bias)
        self.prepared.launch(*tensors)

    def _shared(self, out: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Partial sums, how many of them arrived, and the table of who computes what."""
        prepared = self.prepared
        if not self.dealt:
            make = functools.partial(_tensors, prepared.table, out.device)
            self.dealt = make() if compat.is_fake(out) or not out.is_cuda else workspace.resident(make, self.device)
        partials = workspace.temporary("partial sums", prepared.partials, prepared.partial_dtype, out)
        tables = (lent(table, functools.partial(_same, table)) for table in self.dealt)
        return partials, workspace.zeros(prepared.arrivals, out), *tables


def _same(table: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return table


@dataclass(frozen=True)
class _Prepared:
    """A launch, and what it needs where tiles are cut in pieces.

    Attributes:
        launch: the kernel with its numbers.
        table: items and offsets of ``quantized_mm_shares``.
        partials, partial_dtype: elements of partial sums, 0 for whole tiles.
        arrivals: counters of pieces that are ready.
        placeholders: the kernel has these parameters for whole tiles too.
    """

    launch: Launch
    table: tuple[Any, ...] = ()
    partials: int = 0
    partial_dtype: torch.dtype = torch.float32
    arrivals: int = 0
    placeholders: bool = False


def _plain(config: Config, posed: Problem) -> _Prepared:
    """``triton_quantized_mm``: all warps do everything."""
    bodies = triton_bodies(NAME)
    tile_k, step = config["k"], posed.step
    steps = -(-step // tile_k)
    blocks = posed.pieces * steps if step else -(-posed.k // tile_k)
    tiles = -(-posed.m // config["m"]) * -(-posed.n // config["n"])
    programs = device(posed.ordinal)[0] * config["per_sm"]
    sizes = (
        posed.m, posed.n, posed.k, posed.stride_a, posed.stride_b, posed.n, step,
        int(not posed.repeat_a), int(not posed.repeat_b), *posed.jumps, blocks,
    )  # fmt: skip
    constants = [config["m"], config["n"], tile_k, config["group_m"], steps, config["tma"], config.get("promote")]
    constants.append(posed.bias is not None)
    options = {"num_warps": config["warps"], "num_stages": config["stages"], "enable_fp_fusion": True}
    if config["kernel"] == "tiles":
        constants += [config["store"] == "tma", config.get("flatten", False)]
    values = (*sizes, *constants)
    if config["kernel"] == "tiles":
        launch = Launch(bodies.tiles_kernel, min(tiles, programs), values, options, loose=1, descriptors=config["tma"])
        return _Prepared(launch)
    hands = deal(programs, tiles, blocks // max(steps, 1))
    *table, slots = hands.table(max(steps, 1))
    return _Prepared(
        Launch(bodies.stream_kernel, len(hands.hands), values, options, loose=1, descriptors=config["tma"]),
        tuple(table),
        max(slots, 1) * config["m"] * config["n"],
        torch.int32 if posed.carrier == torch.int8 and not step else torch.float32,
        tiles,
    )


def _specialised(config: Config, posed: Problem) -> _Prepared:
    """``gluon_quantized_mm``: one warp loads, the others multiply."""
    consumers, tile_k = config["m"] // 64, config["k"]
    unit = min(posed.step, PROMOTE) or (PROMOTE if posed.carrier != torch.int8 and posed.k > PROMOTE else 0)
    steps = unit // tile_k
    blocks = -(-posed.k // unit) * steps if unit else -(-posed.k // tile_k)
    tiles = -(-posed.m // config["m"]) * -(-posed.n // config["n"])
    programs = device(posed.ordinal)[0]
    sizes = (
        posed.m, posed.n, posed.k, posed.stride_a, posed.stride_b, posed.n,
        int(not posed.repeat_a), int(not posed.repeat_b), *posed.jumps, blocks,
    )  # fmt: skip
    grouped, units = bool(posed.group_k), max(posed.step // unit, 1) if unit else 1
    constants = (
        config["n"], tile_k, config["group_m"], config["stages"], consumers, steps, units,
        grouped and not posed.share_a, grouped and not posed.share_b, posed.bias is not None, config["stream"],
        config["stagger"], config["store_n"], 240 if consumers == 2 else 160,
    )  # fmt: skip
    options = {"num_warps": 4, "maxnreg": 168 if consumers == 2 else 128, "enable_fp_fusion": True}
    launch = functools.partial(
        Launch, triton_bodies(NAME, "gluon").specialised_kernel, values=(*sizes, *constants), options=options,
        loose=1, descriptors=config["tma"],
    )  # fmt: skip
    if not config["stream"]:
        return _Prepared(launch(programs=min(tiles, programs)), placeholders=True)
    hands = deal(programs, tiles, blocks // max(steps, 1))
    *table, slots = hands.table(max(steps, 1))
    return _Prepared(
        launch(programs=len(hands.hands)),
        tuple(table),
        max(slots, 1) * config["m"] * config["n"],
        torch.int32 if posed.carrier == torch.int8 and not steps else torch.float32,
        tiles * consumers,
    )


def _tensors(tables: tuple[list[int], ...], device: torch.device) -> list[torch.Tensor]:
    return [torch.tensor(table, dtype=torch.int32, device=device) for table in tables]
