"""Find the pointwise chains that make what quantising kernels read, and decide which ones those kernels shall evaluate.

y, g_y of a layer for instance, is read along its rows (g_x) and along its tokens (g_w). Three ways, by bytes:

- apart: y is written, and each kernel reads it;
- merged: y is written, one kernel reads it and makes both forms;
- fused: one kernel reads what y is made of and y is never written, unless somebody else reads it.

A chain grows backwards from y and ends at its leaves. A node that others read too is a leaf: they force it to memory,
so that reading it costs least. Only what is made of a single other tensor is computed again instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.fx as fx

from hadamard_fx import compat
from hadamard_fx.fusion import Fusion
from hadamard_fx.kernels.library import load
from hadamard_fx.kernels.prologue import Prologue

from .chains import Chain, is_extern, kind_of, readers, row_views, size
from .joint_graph import JointGraph, module_of, value
from .pointwise import Builder

aten = torch.ops.aten

MAKES_ROWS, MAKES_TOKENS = "rows", "tokens"


@dataclass(frozen=True)
class Site:
    """One tensor y and the one call that shall read for all its quantised forms.

    Attributes:
        y: the node, below the views that show it as [L, C].
        shape: [L, C].
        rows, tokens: the calls of ``quantize_rows`` and ``compress_tokens`` that are replaced.
        sums: sums of y over the tokens, which come out of the same kernel.
        keep: somebody else reads y.
        prologue, leaves: how y is made, and of what.
        chain: nodes that nobody needs afterwards, unless others read them.
    """

    y: fx.Node
    shape: tuple[int, int]
    rows: fx.Node | None
    tokens: fx.Node | None
    sums: tuple[fx.Node, ...]
    keep: bool
    prologue: Prologue
    leaves: tuple[fx.Node, ...]
    chain: tuple[fx.Node, ...]

    @property
    def calls(self) -> list[fx.Node]:
        """Those that are replaced."""
        return [call for call in (self.rows, self.tokens) if call is not None]

    @property
    def where(self) -> fx.Node:
        """The first node that reads what the new call makes."""
        first: fx.Node = min([*self.calls, *self.sums, *(self.y.users if self.keep else ())])
        return first

    def draws_between(self) -> bool:
        """The seeds would have to move before another random draw, which would then draw something else."""
        seeds = [compat.arguments(call)["seed"] for call in self.calls]
        vectors = [above for seed in seeds if isinstance(seed, fx.Node) for above in seed.all_input_nodes]
        node, last = self.where, max([*vectors, self.where])
        while node is not last:
            if node not in vectors and torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
                return True
            node = node.next
        return False


@dataclass
class _Candidate:
    """A tensor under consideration."""

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


@dataclass(frozen=True)
class FindProducers:
    """Forward, backward or inference graph ⇒ what one kernel shall read and make.

    Attributes:
        devices: types of the devices where it pays: elsewhere an opaque call would undo Inductor's own fusion.
    """

    name: ClassVar[str] = "find-producers"
    devices: frozenset[str] = frozenset({"cuda"})

    def analyse(self, joint: JointGraph) -> tuple[tuple[Site, ...], tuple[Fusion, ...]]:
        """The sites to rewrite in graph order, and a fact on every tensor that was considered."""
        candidates, facts = [], []
        for candidate in self._candidates(joint.graph):
            reason = _why_not(candidate)
            if reason:
                facts.append(_fact(joint, candidate, reason=reason))
            else:
                candidates.append(candidate)
        _grow(candidates)
        sites = []
        for candidate in candidates:
            site, fact = _decide(joint, candidate, candidates)
            if site is not None and site.draws_between():
                site, fact = None, _fact(joint, candidate, reason="another random draw would change")
            facts.append(fact)
            sites += [site] if site is not None else []
        return tuple(sites), tuple(facts)

    def _candidates(self, graph: fx.Graph) -> Iterator[_Candidate]:
        """Tensors that our kernels read, with the first reader of each kind."""
        forms = {load()["quantize_rows"].op: MAKES_ROWS, load()["compress_tokens"].op: MAKES_TOKENS}
        found: dict[fx.Node, _Candidate] = {}
        for node in graph.nodes:
            form = forms.get(node.target)
            if form is None or value(node.all_input_nodes[0]).device.type not in self.devices:
                continue
            y = row_views(node.all_input_nodes[0])
            candidate = found.setdefault(y, _Candidate(y))
            if getattr(candidate, form) is None:
                setattr(candidate, form, node)
        yield from found.values()


def why_not_in_one_read(call: fx.Node) -> str:
    """Why one read cannot make this quantised form, ``""`` where it can."""
    settings = compat.arguments(call)
    if settings["scale"] not in ("token", "channel"):
        return f"one scale per {settings['scale']} needs a read of its own"
    if not settings["group"]:
        return "a scale over the whole axis needs a read of its own"
    return ""


def _why_not(candidate: _Candidate) -> str:
    tensors = [value(call.all_input_nodes[0]) for call in candidate.calls]
    if not all(isinstance(extent, int) for extent in (*value(candidate.y).shape, *tensors[0].shape)):
        return "its sizes are symbolic"
    if min(tensors[0].shape) < 2 or value(candidate.y).dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"nothing to gain with {list(tensors[0].shape)} of {value(candidate.y).dtype}"
    reasons = dict.fromkeys(why_not_in_one_read(call) for call in candidate.calls)
    return "; ".join(reason for reason in reasons if reason)


def _grow(candidates: list[_Candidate]) -> None:
    """The chains of all candidates; what two of them compute is nobody else's."""
    roots = {candidate.y for candidate in candidates}
    for candidate in candidates:
        candidate.chain = Chain.of(candidate.y, candidate.shape, frozenset(roots))
        outside = [user for user in readers(candidate.y) if user not in candidate.calls]
        candidate.sums = tuple(user for user in outside if _is_token_sum(user, candidate.shape))
        candidate.others = tuple(user for user in outside if user not in candidate.sums)
    while True:
        inside = frozenset(node for candidate in candidates for node in candidate.chain.nodes)
        pruned = [candidate.chain.prune(inside) for candidate in candidates]
        if not any(pruned):
            return


def _is_token_sum(node: fx.Node, shape: tuple[int, int]) -> bool:
    """A sum over all tokens of y, of a view of y whose last axis holds the channels."""
    if node.target is not aten.sum.dim_IntList or not node.args[1]:
        return False
    axes = value(node.all_input_nodes[0]).dim()
    summed = sorted(axis % axes for axis in node.args[1])  # type: ignore[operator, union-attr]
    return summed == list(range(axes - 1)) and value(node).numel() == shape[1] and value(node).dtype.itemsize <= 4


def _decide(joint: JointGraph, candidate: _Candidate, all_of_them: list[_Candidate]) -> tuple[Site | None, Fusion]:
    """The cheapest of the three ways, by bytes; where two cost the same, the simpler one."""
    y, calls = candidate.bytes, len(candidate.calls)
    produced = bool(candidate.chain.nodes)
    apart = y * (calls + produced)
    ways = {"apart": apart}
    if calls == 2:
        ways["merged"] = y * (1 + produced)
    prologue = _prologue(candidate)
    if produced and prologue is not None:
        ways["fused"] = _fused_bytes(candidate, all_of_them)
    best = min(ways, key=lambda way: ways[way])
    if best == "merged" and not value(candidate.calls[0].all_input_nodes[0]).is_contiguous():
        best = "apart"
    if best == "apart":
        reason = "what it is made of takes as much to read as it takes itself" if produced else "one kernel reads it"
        return None, _fact(joint, candidate, reason=reason)
    if best == "merged":
        leaf = candidate.calls[0].all_input_nodes[0]
        builder = Prologue.identity()
        site = _site(candidate, builder, (leaf,), merged=True)
        return site, _fact(joint, candidate, forms=_forms(candidate), saved=apart - ways[best])
    assert prologue is not None
    made, leaves = prologue
    site = _site(candidate, made, leaves, merged=False)
    return site, _fact(joint, candidate, candidate.chain.names(), _forms(candidate), apart - ways[best])


def _site(candidate: _Candidate, prologue: Prologue, leaves: tuple[fx.Node, ...], *, merged: bool) -> Site:
    keep = bool(candidate.others) and not merged  # what is merged reads y itself, which stays where it is
    chain = () if merged else tuple(candidate.chain.nodes)
    rows, tokens, sums = candidate.rows, candidate.tokens, candidate.sums
    return Site(candidate.y, candidate.shape, rows, tokens, sums, keep, prologue, leaves, chain)


def _prologue(candidate: _Candidate) -> tuple[Prologue, tuple[fx.Node, ...]] | None:
    builder = Builder()
    for leaf in candidate.chain.leaves:
        builder.leaf(leaf, kind_of(leaf, candidate.shape) or "tile")
    for node in candidate.chain.nodes:
        builder.add(node)
    made = builder.prologue(candidate.y) if candidate.chain.nodes else None
    return None if made is None else (made, tuple(builder.leaves))


def _fused_bytes(candidate: _Candidate, all_of_them: list[_Candidate]) -> int:
    """Bytes of the fused kernel beyond those that the leaves cost where y is computed apart."""
    total = 0.0
    for leaf in candidate.chain.leaves:
        sharing = sum(leaf in other.chain.leaves for other in all_of_them)
        total += candidate.chain.extra_bytes(leaf, sharing)
    if candidate.others:  # y is written, and who made use of it in registers must read it
        total += candidate.bytes * (1 + any(not is_extern(other) for other in candidate.others))
    return math.ceil(total)


def _forms(candidate: _Candidate) -> tuple[str, ...]:
    return tuple(form for form in (MAKES_ROWS, MAKES_TOKENS) if getattr(candidate, form) is not None)


def _fact(
    joint: JointGraph,
    candidate: _Candidate,
    operations: tuple[str, ...] = (),
    forms: tuple[str, ...] = (),
    saved: int = 0,
    reason: str = "",
) -> Fusion:
    tensor = "g_y" if candidate.y in joint.tangent_closure else "x"
    layer: Any = module_of(candidate.calls[0])
    return Fusion(layer, tensor, candidate.y.name, operations, forms, saved, reason)
