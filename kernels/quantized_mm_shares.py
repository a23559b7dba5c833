"""Dealing out the tiles of a product so that every program gets the same share, in few pieces.

A product with fewer tiles than the device runs programs (g_w: 144 tiles on 264 programs) leaves processors idle unless
tiles are cut along K. Stream-K (arXiv 2301.03598) cuts the line of all tiles, one after the other, into equal spans;
the programs are then spread over all of K at once, and operands that do not fit the cache are read again and again.
Here the cuts follow Euclid's algorithm instead, so that at any time most programs read the same columns:

- programs ≥ tiles: as many layers as fit, a layer being one piece of every tile, all of the same columns; the columns
  that remain go to the programs that remain;
- tiles ≥ programs: a wave of whole tiles for every program; the tiles that remain go to all programs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["MINIMUM", "Deal", "Piece", "deal"]

MINIMUM = 4
"""Units that make a piece worth its own partial sum, where a tile has as many."""


@dataclass(frozen=True)
class Piece:
    """Units ``first`` .. ``last`` (exclusive) of a tile."""

    tile: int
    first: int
    last: int


@dataclass
class Deal:
    """Who computes what: ``hands[program]`` in order of execution."""

    hands: list[list[Piece]] = field(default_factory=list)

    def table(self, unit: int) -> tuple[list[list[int]], list[int], int]:
        """What ``stream_kernel`` reads: (items, offsets, slots of partial sums); ``unit``: K-blocks of a unit."""
        pieces: dict[int, list[Piece]] = {}
        for piece in sorted((p for hand in self.hands for p in hand), key=lambda p: (p.tile, p.first)):
            pieces.setdefault(piece.tile, []).append(piece)
        slots, base = 0, {}
        for tile, of_tile in pieces.items():
            base[tile] = slots
            slots += len(of_tile) if len(of_tile) > 1 else 0
        items, offsets = [], [0]
        for hand in self.hands:
            for p in hand:
                of_tile = pieces[p.tile]
                number = of_tile.index(p)
                items.append([p.tile, p.first * unit, p.last * unit, number, len(of_tile), base[p.tile]])
            offsets.append(len(items))
        return items, offsets, slots


def deal(programs: int, tiles: int, units: int) -> Deal:
    """Deal ``tiles`` of ``units`` units each to at most ``programs`` programs.

    Every unit of every tile is in exactly one piece. Where tiles outnumber programs, whole tiles come last, so that a
    program does not end with adding up what others left.
    """
    if tiles >= programs:
        spare = tiles % programs
        result = _share(list(range(spare)), programs, 0, units)
        for tile in range(spare, tiles):
            result[(tile - spare) % programs].append(Piece(tile, 0, units))
        return Deal(result)
    return Deal([hand for hand in _share(list(range(tiles)), programs, 0, units) if hand])


def _share(tiles: list[int], programs: int, first: int, last: int) -> list[list[Piece]]:
    """The hands of so many programs for units ``first`` .. ``last`` of the tiles."""
    hands: list[list[Piece]] = [[] for _ in range(programs)]
    units = last - first
    if not tiles or units <= 0:
        return hands
    if len(tiles) >= programs:
        whole = len(tiles) - len(tiles) % programs
        for index, tile in enumerate(tiles[:whole]):
            hands[index % programs].append(Piece(tile, first, last))
        more = _share(tiles[whole:], programs, first, last)
        return [hand + extra for hand, extra in zip(hands, more, strict=True)]
    useful = min(programs, len(tiles) * max(units // MINIMUM, 1))
    depth = -(-len(tiles) * units // useful)
    layers = min(useful // len(tiles), -(-units // depth))
    for layer in range(layers):
        start = first + layer * depth
        for index, tile in enumerate(tiles):
            hands[layer * len(tiles) + index].append(Piece(tile, start, min(start + depth, last)))
    used = layers * len(tiles)
    if useful > used:
        hands[used:useful] = _share(tiles, useful - used, first + layers * depth, last)
    return hands
