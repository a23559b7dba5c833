"""Measure a device: the figures of a ``DeviceProfile``, and how well they predict kernels that none was taken from.

A figure is the median of one kind of work at a size at which nothing else limits it: a copy for the bandwidth,
products, a square one and a flat one, for the rate of a type, a transform that fits the cache for everything that is no
product, a kernel of nothing for what a launch costs. The preferences of the bundled profile (carrier, groups) are kept:
they follow from the kernels' design.
"""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from hadamard_fx.kernels import compress_tokens, quantize_rows, quantized_mm
from hadamard_fx.kernels.autotune import seconds as median_seconds
from hadamard_fx.kernels.library import load
from hadamard_fx.kernels.traffic import UNITS, Traffic

from . import roofline
from .device_profile import SCHEMA, VERSION, DeviceProfile
from .tuned import device_name

__all__ = ["STEPS", "Residual", "Tuning", "measure"]

STEPS = ("bandwidth", "launch", *UNITS, "check")
"""What is done, in order; a progress bar counts them."""

_FLOATS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_CARRIERS = {"int8": torch.int8, "float8": torch.float8_e4m3fn}
_LONG_ENOUGH = 10e-3
"""Seconds of a product whose rate is believed."""


@dataclass(frozen=True)
class Residual:
    """One kernel that no figure was taken from: its sizes, and predicted and measured seconds."""

    kernel: str
    sizes: str
    predicted: float
    measured: float

    @property
    def ratio(self) -> float:
        return self.predicted / self.measured


@dataclass(frozen=True)
class Tuning:
    """A measured profile, as its JSON and parsed, with the residuals."""

    data: dict[str, Any]
    residuals: tuple[Residual, ...]

    @property
    def spread(self) -> float:
        """The typical factor between predicted and measured times, at least 1."""
        logarithms = sorted(abs(math.log(residual.ratio)) for residual in self.residuals)
        return math.exp(logarithms[len(logarithms) // 2]) if logarithms else 1.0


def measure(device_type: str, like: DeviceProfile, advance: Callable[[str], None] = lambda step: None) -> Tuning:
    """Measure this machine's device.

    Args:
        device_type: ``"cpu"`` or ``"cuda"``.
        like: the profile whose preferences are kept.
        advance: called with each of ``STEPS`` before it is done.

    Raises:
        DeviceError: there is no such device.
    """
    load()
    name = device_name(device_type)
    bench = _Bench(device_type)
    figures: dict[str, float] = {}
    for step in STEPS[:-1]:
        advance(step)
        figures[step] = bench.figure(step, figures)
    rates = {**like.rates, **{unit: figures[unit] for unit in UNITS}}
    profile = dataclasses.replace(like, bandwidth=figures["bandwidth"], launch=figures["launch"], rates=rates)
    advance("check")
    return Tuning(_json(device_type, name, figures, like), tuple(bench.residuals(profile)))


def _json(device_type: str, name: str, figures: dict[str, float], like: DeviceProfile) -> dict[str, Any]:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    measured = {"kind": "measured", "source": f"hadamard-fx tune, {today}, {name}, torch {torch.__version__}, medians"}
    kept = {"kind": "derived", "source": f"as {like.name}"}
    preferences = ("carrier", "token_group", "column_group")
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "name": f"tuned ({name})",
        "summary": f"{name}, measured on {today}",
        "device_type": device_type,
        "matches": name,
        "bandwidth": {"value": figures["bandwidth"] / 1e9, "unit": "GB/s", **measured},
        "rates": {unit: {"value": figures[unit] / 1e9, "unit": "GOP/s", **measured} for unit in UNITS},
        "launch": {"value": figures["launch"] * 1e6, "unit": "us", **measured},
        "preferences": {key: {"value": getattr(like, key), **kept} for key in preferences},
    }


class _Bench:
    """The measurements on one device."""

    def __init__(self, device_type: str) -> None:
        self.device = torch.device(device_type)
        self.cuda = device_type == "cuda"
        torch.manual_seed(0)

    def figure(self, step: str, known: dict[str, float]) -> float:
        """One figure in SI units."""
        if step == "bandwidth":
            x = torch.empty(1 << (28 if self.cuda else 24), device=self.device).normal_()
            target = torch.empty_like(x)
            return 2 * x.numel() * 4 / self.seconds(lambda: target.copy_(x))
        if step == "launch":
            return self.seconds(self._rows(16, 16))
        if step == "vector":
            shape = (16384, 4096) if self.cuda else (512, 1024)
            spent = self.seconds(self._rows(*shape)) - known["launch"]
            return float(quantize_rows.traffic(*shape, 16, 4).operations) / max(spent, 1e-9)
        return self._rate(step)

    def _rate(self, unit: str) -> float:
        """Operations/s of products that take long enough."""
        size, largest = (2048, 8192) if self.cuda else (256, 2048)
        while True:
            shapes = ((size, size, size), (4 * size, size, size // 4))
            spent = sum(self.seconds(self._product(unit, *shape)) for shape in shapes)
            if spent > (_LONG_ENOUGH / 10 if self.cuda else _LONG_ENOUGH) or size >= largest:
                return 2 * sum(math.prod(shape) for shape in shapes) / spent
            size *= 2

    def _product(self, unit: str, m: int, n: int, k: int) -> Callable[[], object]:
        if unit in _FLOATS:
            a, b = (torch.randn(rows, k, device=self.device).to(_FLOATS[unit]) for rows in (m, n))
            return lambda: a @ b.t()
        low = 127 if unit == "int8" else 7
        left, right = (torch.randint(-low, low + 1, (rows, k), device=self.device) for rows in (m, n))
        a, b = left.float().to(_CARRIERS[unit]), right.float().to(_CARRIERS[unit])
        scales = torch.ones(1, m, device=self.device), torch.ones(1, n, device=self.device)
        result = torch.bfloat16 if self.cuda else torch.float32
        return lambda: quantized_mm.QUANTIZED_MM.op(a, b, *scales, 0, result, None)

    def _rows(self, rows: int, columns: int) -> Callable[[], object]:
        x = torch.randn(rows, columns, device=self.device)
        return lambda: quantize_rows.KERNEL.op(x, None, 16, 4, "token", "nearest", "int8")

    def seconds(self, call: Callable[[], object]) -> float:
        """Median seconds on the device. On CUDA of replays, so that the host's time does not count."""
        call()
        if not self.cuda:
            return median_seconds(call, 7)
        graph, count = torch.cuda.CUDAGraph(), 8
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            for _ in range(count):
                call()
        return median_seconds(graph.replay, 7) / count

    def residuals(self, profile: DeviceProfile) -> Iterator[Residual]:
        """Kernels and sizes that no figure was taken from."""
        tokens, width, hidden = (12288, 1536, 6144) if self.cuda else (1536, 384, 1152)
        for unit in ("float32", "bfloat16", "int8"):
            itemsize = _FLOATS[unit].itemsize if unit in _FLOATS else 1
            out = itemsize if unit in _FLOATS else 2 if self.cuda else 4
            bytes_ = (tokens + hidden) * width * itemsize, tokens * hidden * out
            traffic = Traffic("product", *bytes_, 2 * tokens * hidden * width, unit)
            yield self._residual(f"{unit} product", f"{tokens}×{hidden}×{width}", traffic, profile,
                                 self._product(unit, tokens, hidden, width))  # fmt: skip
        x = torch.randn(tokens, hidden, device=self.device)
        sizes = f"{tokens}×{hidden}"
        rows = quantize_rows.traffic(tokens, hidden, 16, 4)
        yield self._residual("quantize_rows", sizes, rows, profile, self._rows(tokens, hidden))
        compress = compress_tokens.traffic(tokens, hidden, 16, 8, 4)
        yield self._residual("compress_tokens", sizes, compress, profile,
                             lambda: compress_tokens.KERNEL.op(x, None, 16, 8, 8, "channel", "nearest", 0))  # fmt: skip

    def _residual(
        self, kernel: str, sizes: str, traffic: Traffic, profile: DeviceProfile, call: Callable[[], object]
    ) -> Residual:
        return Residual(kernel, sizes, float(roofline.seconds([traffic], profile)), self.seconds(call))
