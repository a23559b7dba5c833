"""Layer-wise selection (HOT's LQS, arXiv 2503.21261)."""

from __future__ import annotations

from dataclasses import replace

from hadamard_fx.plan import Role, Scheme
from hadamard_fx.policy import PROFILES
from hadamard_fx.scheme import Exact, Hadamard, LowRank

ORDERS = (16, 32, 64, 128)


def measured_schemes(role: Role) -> tuple[Scheme, ...]:
    found: dict[Scheme, None] = {}
    for profile in PROFILES.values():
        for scheme in profile.schemes(role):
            if isinstance(scheme, Exact):
                continue
            found[scheme] = None
            if isinstance(scheme, Hadamard) and role is not Role.FORWARD:
                found.update(
                    dict.fromkeys(
                        [
                            replace(scheme, scale="tensor"),
                            replace(scheme, rounding="nearest"),
                            replace(scheme, order=64),
                        ]
                    )
                )
            if isinstance(scheme, LowRank):
                found.update(
                    dict.fromkeys(
                        [
                            replace(scheme, scale="tensor"),
                            replace(scheme, rounding="nearest"),
                            replace(scheme, rank=4),
                            replace(scheme, rank=16),
                            replace(scheme, bits=4),
                        ]
                    )
                )
    return tuple(found)
