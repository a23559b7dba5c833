"""Where each product stands under the roof of its device: operations per byte against operations per second.

The operations are those of the exact product in both cases, so that a scheme that computes less is seen to do the same
work faster. Bytes are those that the scheme's own price counts, quantising included.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Self

from ..cost_model.device_profile import DeviceProfile
from ..passes.rule import rule_of
from ..plan import Decision, Gemm, Plan
from ..scheme import Exact, Scheme

__all__ = ["Roofline", "roofline_of"]

_AT_ONCE = 1e30
"""Operations/s that no product takes a second of; finite, for the sake of prices that somebody else wrote."""


@dataclass(frozen=True)
class Roofline:
    """The figures of a device, and the bytes that each product moves there.

    Attributes:
        bandwidth: bytes/s.
        rates: operations/s by unit, ``"int8"``.
        moved: (node, bytes if exact, bytes as chosen) of each product that computes anything and whose price is a
            plain sum over bytes and operations.
    """

    bandwidth: float
    rates: dict[str, float] = field(hash=False)
    moved: tuple[tuple[str, float, float], ...]

    def to_json(self) -> dict[str, Any]:
        moved = [{"node": node, "bytes_exact": exact, "bytes": chosen} for node, exact, chosen in self.moved]
        return {"bandwidth": self.bandwidth, "rates": dict(self.rates), "moved": moved}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        moved = tuple((entry["node"], entry["bytes_exact"], entry["bytes"]) for entry in data["moved"])
        return cls(data["bandwidth"], data["rates"], moved)


def roofline_of(plan: Plan, profile: DeviceProfile) -> Roofline:
    """The figures behind the prices of a plan."""
    # On this device every byte takes a second and nothing else takes any time: a price is a number of bytes.
    counting = dataclasses.replace(profile, bandwidth=1.0, launch=0.0, rates=dict.fromkeys(profile.rates, _AT_ONCE))
    moved = (_moved(decision, counting) for decision in plan.decisions if decision.gemm.flops)
    countable = tuple(entry for entry in moved if all(0 < size < math.inf for size in entry[1:]))
    return Roofline(profile.bandwidth, dict(profile.rates), countable)


def _moved(decision: Decision, counting: DeviceProfile) -> tuple[str, float, float]:
    gemm = decision.gemm
    exact = _bytes(Exact(), gemm, counting)
    return gemm.node, exact, _bytes(decision.scheme, gemm, counting) if decision.rewritten else exact


def _bytes(scheme: Scheme, gemm: Gemm, counting: DeviceProfile) -> float:
    return float(rule_of(scheme).price(scheme, gemm, counting, 1).seconds)
