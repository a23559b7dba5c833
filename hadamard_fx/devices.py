"""The devices at hand: what they are called, what prices them, and whether the kernels run there."""

from __future__ import annotations

import dataclasses
import importlib.util
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from rich.table import Table

from .cost_model.device_profile import DeviceProfile, profile_for

__all__ = ["Device", "devices"]


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        device: ``"cpu"``, ``"cuda:0"``.
        name: the maker's.
        profile: name of the device profile that prices graphs there.
        bandwidth: bytes/s. rates: operations/s by type. Both as the profile says.
        kernels: how the kernels run, or why they cannot.
    """

    device: str
    name: str
    profile: str
    bandwidth: float
    rates: dict[str, float]
    kernels: str

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def table(found: tuple[Device, ...]) -> Table:
        """For a terminal."""
        table = Table(box=None, padding=(0, 2, 0, 0))
        for header in ("device", "name", "profile", "memory", "float32", "bfloat16", "int8", "kernels"):
            table.add_column(header, overflow="fold", no_wrap=header not in ("name", "profile", "kernels"))
        for device in found:
            rates = (f"{device.rates[unit] / 1e12:.3g} TOP/s" for unit in ("float32", "bfloat16", "int8"))
            memory = f"{device.bandwidth / 1e9:.4g} GB/s"
            table.add_row(device.device, device.name, device.profile, memory, *rates, device.kernels)
        return table


def devices() -> tuple[Device, ...]:
    """The CPU and every CUDA device."""
    threads = f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    found = [_device("cpu", threads, profile_for("cpu"), "C++ by Inductor")]
    for index in range(torch.cuda.device_count()):
        with torch.cuda.device(index):
            profile = profile_for("cuda")
        found.append(_device(f"cuda:{index}", torch.cuda.get_device_name(index), profile, _triton()))
    return tuple(found)


def _device(device: str, name: str, profile: DeviceProfile, kernels: str) -> Device:
    return Device(device, name, profile.name, profile.bandwidth, dict(profile.rates), kernels)


def _triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return "none: Triton is not installed, every product stays exact"
    return f"Triton {version('triton')}"
