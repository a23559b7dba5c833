"""What decides how ``quantized_mm`` is launched on a CUDA device: the problem, and the configurations worth timing."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from hadamard_fx import compat

from .integer_mm import EXACT_COLUMNS
from .quantized_mm import count_groups

__all__ = [
    "CONFIGS",
    "FLOAT8",
    "GROUPED",
    "PROMOTE",
    "SPECIALISED",
    "Config",
    "Problem",
    "candidates",
    "config",
    "device",
    "problem",
    "specialised",
]

Config = Mapping[str, Any]
"""One configuration, JSON values by name: ``kernel``; the tile ``m``, ``n``, ``k``; ``group_m`` rows of tiles share
operands; ``warps``, ``stages``, ``per_sm`` programs on a multiprocessor; ``store`` of the result, ``"tma"`` or
``"plain"``; ``flatten``: start the next tile's loads before this tile is written."""


def config(kernel: str, m: int, n: int, k: int, stages: int, **flags: Any) -> dict[str, Any]:
    """A configuration with the usual defaults; ``flags`` override or add."""
    base = {"kernel": kernel, "m": m, "n": n, "k": k, "group_m": 8, "warps": 8, "stages": stages, "per_sm": 1}
    return {**base, "store": "tma" if kernel == "tiles" else "plain", "tma": True, **flags}


# Two programs of four warps on a multiprocessor hide each other's waits: Triton drains the tensor cores after every
# K-block where the accumulator is an int32 (1466 TOP/s at 8192³ on an H200, against 1354 with one program of eight).
# Flattened loops load the next tile's operands behind the epilogue: 8 to 17 % where K is 768, nothing where it is long.
CONFIGS: tuple[Config, ...] = (
    config("tiles", 128, 128, 128, 3, warps=4, per_sm=2),
    config("tiles", 128, 128, 128, 3, warps=4, per_sm=2, flatten=True),
    config("stream", 128, 128, 128, 3, warps=4, per_sm=2),
    config("stream", 128, 128, 128, 5),
)
"""One rescale at the end; the safest first."""

# Where partial sums are rescaled, or promoted, a second accumulator needs the registers of half the tile.
GROUPED: tuple[Config, ...] = (
    config("tiles", 128, 128, 256, 3),
    config("tiles", 64, 128, 128, 4, warps=4, per_sm=2, flatten=True),
    config("stream", 128, 128, 256, 3),
    config("stream", 64, 128, 128, 4, warps=4, per_sm=2),
)
"""Partial sums rescaled every ``step`` columns."""

FLOAT8: tuple[Config, ...] = (
    config("tiles", 128, 128, 256, 3),
    config("tiles", 64, 128, 128, 4, warps=4, per_sm=2, flatten=True),
    config("stream", 128, 128, 256, 3),
    config("stream", 128, 128, 128, 5),
)
"""float8_e4m3 over more than ``PROMOTE`` columns, one rescale at the end."""


def specialised(consumers: int, n: int, stages: int, stagger: int, store_n: int, *, stream: bool) -> dict[str, Any]:
    """A configuration of ``gluon_quantized_mm``: a warp that loads, and ``consumers`` groups of four that multiply."""
    tile = config("specialised", 64 * consumers, n, 128, stages, warps=4)
    return {**tile, "store": "tma", "stagger": stagger, "store_n": store_n, "stream": stream}


# Three groups of warps of 64 rows hide each other's rescales: groups of 128 columns cost FP8 a tenth of its rate and
# int8 a third, where Triton's own loops lose half of it. Whole rows in int8 like a wide tile better where K is long.
SPECIALISED: dict[str, tuple[Config, ...]] = {
    "tiles": (specialised(3, 128, 4, 1, 128, stream=False),),
    "whole": (specialised(2, 256, 4, 2, 128, stream=False), specialised(3, 128, 5, 1, 64, stream=False)),
    "stream": (specialised(3, 128, 5, 1, 64, stream=True), specialised(2, 128, 6, 1, 128, stream=True)),
}
"""By use: FP8 or groups; int8 with one rescale; pieces of tiles."""

HOPPER = 90
"""Compute capability of the devices with these instructions."""

PROMOTE = 256
"""Columns of FP8 that the tensor cores may add up. Hopper's add FP8 products with 14 bits: sums above 2^14 lose their
last bits (measured: all operands 7, K = 512), and 256 · 7² < 2^14. Every so many columns the sum moves to float32."""

POINTERS: tuple[Config, ...] = (
    config("tiles", 128, 128, 64, 3, store="plain", tma=False),
    config("stream", 128, 128, 64, 3, tma=False),
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
    """All rows of an operand share a scale."""
    share_a: bool
    share_b: bool
    """All groups of an operand share their scales."""
    stride_a: int
    stride_b: int
    bias: torch.dtype | None
    aligned: bool
    """All operands start at multiples of 16 bytes."""
    ordinal: int
    """Of the device."""

    @property
    def step(self) -> int:
        """Columns between two rescales, 0 for none: the groups, or where an int32 would overflow."""
        return self.group_k or (EXACT_COLUMNS if self.k > EXACT_COLUMNS else 0)

    @property
    def pieces(self) -> int:
        """Partial sums that are rescaled."""
        return self.groups if self.group_k else -(-self.k // EXACT_COLUMNS)

    @property
    def jumps(self) -> tuple[int, int]:
        """Elements between the scales of one group and those of the next, of both operands; 0 where they share them."""
        a, b = 1 if self.repeat_a else self.m, 1 if self.repeat_b else self.n
        return 0 if self.share_a else a, 0 if self.share_b else b

    @property
    def tma(self) -> bool:
        """Whether the bulk copy engine can read the operands in tiles of at least 32 columns."""
        steps = self.stride_a | self.stride_b
        return self.aligned and steps % 16 == 0 and self.step % 32 == 0 and device(self.ordinal)[1] >= 90

    @property
    def specialisable(self) -> bool:
        """Whether warps may have roles of their own: Hopper's instructions, operands and result by the copy engine."""
        fits = self.tma and self.store() == "tma" and device(self.ordinal)[1] == HOPPER
        whole = self.step % PROMOTE == 0 or self.step == PROMOTE // 2  # of the units in which sums move to float32
        return fits and whole and self.step < EXACT_COLUMNS

    def store(self) -> str:
        """How the result may leave. The bulk copy engine wants rows that start at multiples of 16 bytes, and room in
        the fast memory, which a float32 result would take from the operands."""
        return "tma" if self.tma and self.dtype.itemsize == 2 and self.n % 8 == 0 else "plain"

    def key(self) -> dict[str, object]:
        """What the tuner's answer depends on; sizes in steps of an eighth of their power of two."""
        sizes = {"M": _bucket(self.m), "N": _bucket(self.n), "K": _bucket(self.k)}
        types = {"carrier": str(self.carrier), "dtype": str(self.dtype), "bias": str(self.bias)}
        scales = {"per row": [not self.repeat_a, not self.repeat_b], "per group": [not self.share_a, not self.share_b]}
        return {**sizes, **types, **scales, "step": self.step, "tma": self.tma, "store": self.store()}


def problem(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    group_k: int,
    dtype: torch.dtype,
    bias: torch.Tensor | None = None,
) -> Problem:
    """The problem that the operands pose (K-major, contiguous scales)."""
    m, k = a.shape
    groups = count_groups(scale_a, scale_b)
    pointers = 0
    if not compat.is_fake(a):
        pointers = a.data_ptr() | b.data_ptr() | scale_a.data_ptr() | scale_b.data_ptr()
    return Problem(
        m, b.shape[0], k, a.dtype, dtype, group_k, groups, scale_a.shape[1] == 1, scale_b.shape[1] == 1,
        scale_a.shape[0] == 1, scale_b.shape[0] == 1, _stride(a), _stride(b),
        None if bias is None else bias.dtype, pointers % 16 == 0, a.device.index or 0,
    )  # fmt: skip


def _stride(operand: torch.Tensor) -> int:
    """Of the rows; a single row may claim any stride, which the bulk copy engine would refuse."""
    return operand.stride(0) if operand.shape[0] > 1 else -(-operand.shape[1] // 16) * 16


@functools.cache
def device(index: int) -> tuple[int, int]:
    """(multiprocessors, compute capability as 90) of a CUDA device."""
    properties = torch.cuda.get_device_properties(index)
    return properties.multi_processor_count, properties.major * 10 + properties.minor


def _bucket(size: int) -> int:
    unit = 1 << max(size.bit_length() - 4, 0)
    return -(-size // unit) * unit


def candidates(posed: Problem) -> list[Config]:
    """The configurations that are legal and not plainly wasteful for a problem, the safest first."""
    float8 = posed.carrier != torch.int8
    if posed.specialisable:
        entries = SPECIALISED["tiles" if float8 or posed.step else "whole"] + SPECIALISED["stream"]
    elif not posed.tma:
        entries = POINTERS
    elif posed.step:
        entries = GROUPED
    else:
        entries = FLOAT8 if float8 and posed.k > PROMOTE else CONFIGS
    legal: list[Config] = []
    for entry in entries:
        tiles = -(-posed.m // entry["m"]) * -(-posed.n // entry["n"])
        programs = device(posed.ordinal)[0] * entry["per_sm"]
        idle = -tiles % programs / (tiles + -tiles % programs)  # of the last wave, were no tile shared
        stream = entry.get("stream", entry["kernel"] == "stream")
        if stream and (idle < 0.1 or posed.k < 16 * entry["k"]):
            continue
        if entry["kernel"] == "specialised":
            legal.append(entry)
            continue
        k = entry["k"]
        while posed.tma and posed.step % k:
            k //= 2  # a group is a whole number of K-blocks
        promote = min(PROMOTE, k) if float8 and posed.k > PROMOTE and (posed.step or posed.k) > PROMOTE else None
        store = "plain" if posed.store() == "plain" else entry["store"]
        if store == "plain" and entry.get("flatten"):
            continue  # its staging buffer would come on top of the operands'
        legal.append({**entry, "k": k, "store": store, "promote": promote})
    return legal
