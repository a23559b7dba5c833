"""Dealing out tiles: every unit once, nobody with much more than their share, tables that the kernel can follow."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hadamard_fx.kernels.quantized_mm_shares import MINIMUM, deal


@settings(max_examples=200, deadline=None)
@given(programs=st.integers(1, 300), tiles=st.integers(1, 700), units=st.integers(1, 200))
def test_every_unit_is_dealt_once_and_fairly(programs: int, tiles: int, units: int) -> None:
    hands = deal(programs, tiles, units).hands
    assert 1 <= len(hands) <= programs and all(hands)
    spans: dict[int, list[tuple[int, int]]] = {}
    for piece in itertools.chain(*hands):
        assert piece.first < piece.last
        spans.setdefault(piece.tile, []).append((piece.first, piece.last))
    assert len(spans) == tiles
    for pieces in spans.values():
        pieces.sort()
        assert [first for first, _ in pieces] == [0, *(last for _, last in pieces[:-1])] and pieces[-1][1] == units
    longest = max(sum(p.last - p.first for p in hand) for hand in hands)
    useful = min(programs, tiles * max(units // MINIMUM, 1))
    assert longest <= tiles * units / useful + 3 * MINIMUM


@pytest.mark.parametrize(("programs", "tiles", "units"), [(264, 144, 197), (132, 36, 197), (3, 7, 10), (5, 2, 3)])
def test_table_follows_the_hands(programs: int, tiles: int, units: int) -> None:
    dealt = deal(programs, tiles, units)
    items, offsets, slots = dealt.table(2)
    assert offsets == [0, *itertools.accumulate(len(hand) for hand in dealt.hands)]
    taken = [base + number for _, _, _, number, pieces, base in items if pieces > 1]
    assert sorted(taken) == list(range(slots))
    for (tile, first, last, *_), piece in zip(items, itertools.chain(*dealt.hands), strict=True):
        assert (tile, first, last) == (piece.tile, 2 * piece.first, 2 * piece.last)
