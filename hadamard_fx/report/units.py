"""Times and bytes for a person: about three figures and a unit."""

from __future__ import annotations

__all__ = ["format_bytes", "format_seconds", "format_share"]


def format_seconds(seconds: float) -> str:
    """``"12.3 µs"``, ``"4.56 ms"``, ``"1.20 s"``."""
    value, unit = seconds * 1e6, "µs"
    for larger in ("ms", "s"):
        if abs(value) >= 999.5:
            value, unit = value / 1000, larger
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f} {unit}"


def format_bytes(size: int) -> str:
    """``"512 B"``, ``"12.5 MiB"``; ``"–"`` for none."""
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value >= 999.5:
            value, unit = value / 1024, larger
    if size == 0:
        return "–"
    return f"{value:.0f} {unit}" if value >= 99.95 or unit == "B" else f"{value:.1f} {unit}"


def format_share(share: float) -> str:
    """``"0.12 %"``, ``"23 %"``."""
    return f"{100 * share:.2g} %" if abs(share) < 0.0995 else f"{100 * share:.0f} %"
