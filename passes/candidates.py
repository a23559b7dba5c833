"""A tensor that quantising kernels read, and what it costs to read it in each of three ways.

y, g_y of a layer for instance, is read along its rows (g_x) and along its tokens (g_w):

- apart: y is written, and each kernel reads it;
- merged: y is written, one kernel reads it and makes both forms;
- fused: one kernel reads what y is made of, and y is never written, unless somebody else reads it.

The cost of a way is the bytes that it moves beyond those that Inductor moves to compute y in registers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.fx as fx

from hadamard_fx import compat
from hadamard_fx.kernels.prologue import Prologue

from .chains import Chain, is_extern, kind_of, readers, size
from .joint_graph import sums_all_but_last, value
from .pointwise import Builder

__all__ = ["MAKES_ROWS", "MAKES_TOKENS", "ROWS", "TOKENS", "Candidate", "why_not_in_one_read"]

aten = torch.ops.aten

MAKES_ROWS, MAKES_TOKENS = "rows", "tokens"

ROWS, TOKENS = ("order", "bits", "group"), ("order", "rank", "bits", "group")
"""Settings of the forms, in the order in which ``quantize_both`` takes them."""


@dataclass
class Candidate:
    """A tensor under consideration.

    Attributes:
        y: the node, below the views that show it as [L, C].
        rows, tokens: the calls that quantise it.
        chain: its pointwise producers.
        sums, others: everything else that reads it: sums over the tokens, and the rest.
    """

    y: fx.Node
    rows: fx.Node | None = None
    tokens: fx.Node | None = None
    chain: Chain = field(default_factory=Chain)
    sums: tuple[fx.Node, ...] = ()
    others: tuple[fx.Node, ...] = ()

    @property
    def calls(self) -> tuple[fx.Node, ...]:
        return tuple(call for call in (self.rows, self.tokens) if call is not None)

    @property
    def shape(self) -> tuple[int, int]:
        length, channels = value(self.calls[0].all_input_nodes[0]).shape
        return length, channels

    @property
    def bytes(self) -> int:
        return size(self.y)

    @property
    def forms(self) -> tuple[str, ...]:
        """Which quantised forms are wanted."""
        return tuple(form for form in (MAKES_ROWS, MAKES_TOKENS) if getattr(self, form) is not None)

    def grow(self, ends: frozenset[fx.Node]) -> None:
        """Find the producers and the readers."""
        self.chain = Chain.of(self.y, self.shape, ends)
        outside = [user for user in readers(self.y) if user not in self.calls]
        self.sums = tuple(user for user in outside if sums_all_but_last(user) and value(user).numel() == self.shape[1])
        self.others = tuple(user for user in outside if user not in self.sums)

    def prologue(self) -> tuple[Prologue, tuple[fx.Node, ...]] | None:
        """How y is made, and of what; None where nothing can be computed on the way."""
        builder = Builder()
        for leaf in self.chain.leaves:
            builder.leaf(leaf, kind_of(leaf, self.shape) or "tile")
        for node in self.chain.nodes:
            builder.add(node)
        made = builder.prologue(self.y) if self.chain.nodes else None
        return None if made is None else (made, tuple(builder.leaves))

    def ways(self, all_of_them: list[Candidate]) -> dict[str, int]:
        """Bytes of each way, the simplest first."""
        produced = bool(self.chain.nodes)
        found = {"apart": self.bytes * (len(self.calls) + produced)}
        if len(self.calls) == 2 and value(self.calls[0].all_input_nodes[0]).is_contiguous():
            found["merged"] = self.bytes * (1 + produced)
        if produced:
            found["fused"] = self._fused_bytes(all_of_them)
        return found

    def _fused_bytes(self, all_of_them: list[Candidate]) -> int:
        total = 0.0
        for leaf in self.chain.leaves:
            sharing = sum(leaf in other.chain.leaves for other in all_of_them)
            total += self.chain.extra_bytes(leaf, sharing)
        if self.others:  # y is written, and who made use of it in registers must read it
            total += self.bytes * (1 + any(not is_extern(other) for other in self.others))
        return math.ceil(total)


def why_not_in_one_read(call: fx.Node) -> str:
    """Why one read cannot make this quantised form, ``""`` where it can."""
    settings = compat.arguments(call)
    if settings["scale"] not in ("token", "channel"):
        return f"one scale per {settings['scale']} needs a read of its own"
    if not settings["group"]:
        return "a scale over the whole axis needs a read of its own"
    return ""
