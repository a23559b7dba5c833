"""What unfolding adds to the price of a product, and where it is done.

A scheme's rule knows products of matrices. For a convolution this file puts beside them: x unfolded into columns, or
the gradient of the columns folded back; and g_y as rows. The token transform does not commute with unfolding, so that
what a forward keeps for g_w is one of two things:

- the scheme's form of the columns, made in the forward. Each element of x is in it as often as windows overlap;
- x itself, as the exact product keeps it, which the backward unfolds.

The smaller one is kept. Where x lives until the backward anyhow, nothing is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hadamard_fx.cost_model.device_profile import DeviceProfile
from hadamard_fx.cost_model.work import Sizes, Work, launch, sizes_of
from hadamard_fx.kernels.windows import columns_traffic, rows_traffic
from hadamard_fx.plan import Cost, Gemm, Role, Scheme
from hadamard_fx.scheme import Exact

from .rule import cost_of, is_of_saved, itemsize, rule_of

__all__ = ["keeps_columns", "note_on", "price_of", "works_of"]


def works_of(scheme: Scheme, gemm: Gemm, sizes: Sizes) -> tuple[Work, ...]:
    """Every launch behind a product, unfolding included; empty where the rule only states a price."""
    works = rule_of(scheme).works(scheme, gemm, sizes)
    if gemm.window is None or isinstance(scheme, Exact) or not works:
        return works
    placed = works if gemm.role is not Role.GRAD_WEIGHT else tuple(_placed(scheme, gemm, sizes, works))
    return (*(_under_window(work, gemm) for work in placed), *_unfolding(scheme, gemm, sizes))


def price_of(scheme: Scheme, gemm: Gemm, profile: DeviceProfile, sharing: int) -> Cost:
    """Predicted seconds and saved bytes of a product, unfolding included; as ``SchemeRule.price``.

    Raises:
        SchemeError: the rule states neither works nor a price.
    """
    if gemm.window is None or isinstance(scheme, Exact):
        return rule_of(scheme).price(scheme, gemm, profile, sharing)
    sizes = sizes_of(gemm)
    works = works_of(scheme, gemm, sizes)
    if works:
        return cost_of(works, profile, sharing)
    cost = rule_of(scheme).price(scheme, gemm, profile, sharing)
    more = cost_of(tuple(_unfolding(scheme, gemm, sizes)), profile, 1)
    kept = gemm.image.hint * itemsize(gemm) // sharing if cost.saved_bytes else 0
    return replace(cost, seconds=cost.seconds + more.seconds, saved_bytes=kept)


def keeps_columns(scheme: Scheme, gemm: Gemm) -> bool:
    """The forward keeps the scheme's form of the columns, and not x."""
    if gemm.window is None or gemm.held or gemm.role is not Role.GRAD_WEIGHT:
        return False
    works = rule_of(scheme).works(scheme, gemm, sizes_of(gemm))
    return 0 < sum(int(work.kept) for work in works if is_of_saved(work)) < gemm.image.hint * itemsize(gemm)


def note_on(scheme: Scheme, gemm: Gemm) -> str:
    """What a person should know of it; ``""`` for nothing."""
    if gemm.window is None or gemm.held or gemm.role is not Role.GRAD_WEIGHT or isinstance(scheme, Exact):
        return ""
    if keeps_columns(scheme, gemm):
        return "the forward keeps its columns, quantised"
    return "the forward keeps x, which takes less than its columns quantised"


def _placed(scheme: Scheme, gemm: Gemm, sizes: Sizes, works: tuple[Work, ...]) -> Iterator[Work]:
    """The rule's works, with x in the place of the columns where x is what is kept."""
    if gemm.held or keeps_columns(scheme, gemm):
        yield from works
        return
    yield from (replace(work, shared=None, kept=0) if is_of_saved(work) else work for work in works)
    yield Work(None, ("saved", gemm.saved, "exact"), sizes.image * itemsize(gemm))


def _under_window(work: Work, gemm: Gemm) -> Work:
    """Columns of one x under two windows are two things."""
    if not isinstance(work.shared, tuple) or work.shared[-1] == "exact":
        return work
    return replace(work, shared=(*work.shared, gemm.window))


def _unfolding(scheme: Scheme, gemm: Gemm, sizes: Sizes) -> Iterator[Work]:
    size, forward = itemsize(gemm), gemm.role is Role.FORWARD or keeps_columns(scheme, gemm)
    tokens, columns = (sizes.k, sizes.saved) if gemm.role is Role.GRAD_WEIGHT else (sizes.m, sizes.n)
    if gemm.role is Role.FORWARD:
        columns = sizes.k
    moved = launch(columns_traffic, sizes.image, tokens, columns, itemsize=size, fold=gemm.role is Role.GRAD_INPUT)
    x = gemm.left if gemm.role is Role.FORWARD else gemm.saved
    yield Work(moved, ("unfolded", x, gemm.window) if forward else None)
    if gemm.gradient:
        channels = sizes.k if gemm.role is Role.GRAD_INPUT else sizes.gradient
        yield Work(launch(rows_traffic, tokens, channels, itemsize=size), ("rows of", gemm.left))
