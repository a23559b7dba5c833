"""Numbers that the CPU forms and the Triton bodies share; without torch, which processes that compile do not load."""

from __future__ import annotations

__all__ = ["FOLD", "HEADROOM", "MULTIPLIER", "SEED_MULTIPLIER", "SMALLEST", "WEYL"]

WEYL = 0x9E3779B1
"""A: 2^32 divided by the golden ratio, made odd."""
MULTIPLIER = 0xC2B2AE35
"""B: the second multiplier of MurmurHash3's finaliser; of eight, the best in neighbour and block statistics."""
SEED_MULTIPLIER = 0x85EBCA6B
"""Spreads neighbouring seeds over the whole counter: without it, seeds s and s + 1 draw correlated numbers."""
FOLD = 16
SMALLEST = 1e-30
"""Magnitudes below count as this: all zeros give q = 0 and no division by zero."""
HEADROOM = 1 - 2.0**-22
"""Times qmax/amax in float32 (two roundings of 2^-24 each), |v·factor| stays below qmax, and so do v·factor + d - 1/2
for d < 1: at 8 bits this moves a value by at most 127·2^-22 of a step."""
