"""Find the pointwise chains that make what quantising kernels read, and decide which ones those kernels shall evaluate.

A chain grows backwards from y and ends at its leaves. A node that others read too is a leaf: they force it to memory,
so that reading it costs least. Only what is made of a single other tensor is computed again instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.fx as fx

from hadamard_fx import compat
from hadamard_fx.fusion import Fusion
from hadamard_fx.kernels import quantize_both
from hadamard_fx.kernels.library import load
from hadamard_fx.kernels.prologue import Prologue

from .candidates import MAKES_ROWS, MAKES_TOKENS, ROWS, TOKENS, Candidate, why_not_in_one_read
from .chains import LONGEST, row_views
from .joint_graph import JointGraph, module_of, value


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


@dataclass(frozen=True)
class FindProducers:
    """Forward, backward or inference graph ⇒ what one kernel shall read and make.

    Attributes:
        devices: types of the devices where it pays: elsewhere an opaque call would undo Inductor's own fusion.
        stores: a kernel of ours may compute what others read, too. Not in a forward, where whatever is not quantised is
            Inductor's, bit for bit: two forms of erf differ in the last one.
    """

    name: ClassVar[str] = "find-producers"
    devices: frozenset[str] = frozenset({"cuda"})
    stores: bool = True

    def analyse(self, joint: JointGraph) -> tuple[tuple[Site, ...], tuple[Fusion, ...]]:
        """The sites to rewrite in graph order, and a fact on every tensor that was considered."""
        candidates, facts = [], []
        for candidate in self._candidates(joint):
            reason = _why_not(candidate)
            if reason:
                facts.append(_fact(joint, candidate, reason=reason))
            else:
                candidates.append(candidate)
        grow_all(candidates)
        sites = []
        for candidate in candidates:
            site, fact = _decide(joint, candidate, candidates, self.stores)
            if site is not None and site.draws_between():
                site, fact = None, _fact(joint, candidate, reason="another random draw would change")
            facts.append(fact)
            sites += [site] if site is not None else []
        return tuple(sites), tuple(facts)

    def _candidates(self, joint: JointGraph) -> Iterator[Candidate]:
        """Tensors that our kernels read, with the first reader of each kind."""
        forms = {load()["quantize_rows"].op: MAKES_ROWS, load()["compress_tokens"].op: MAKES_TOKENS}
        found: dict[fx.Node, Candidate] = {}
        for node in joint.graph.nodes:
            form = forms.get(node.target)
            if form is None or value(node.all_input_nodes[0]).device.type not in self.devices:
                continue
            y = row_views(node.all_input_nodes[0])
            if y in joint.parameters_of:  # a weight, once a step
                continue
            candidate = found.setdefault(y, Candidate(y))
            if getattr(candidate, form) is None:
                setattr(candidate, form, node)
        yield from found.values()


def _why_not(candidate: Candidate) -> str:
    tensors = [value(call.all_input_nodes[0]) for call in candidate.calls]
    if not all(isinstance(extent, int) for extent in (*value(candidate.y).shape, *tensors[0].shape)):
        return "its sizes are symbolic"
    if min(tensors[0].shape) < 2 or value(candidate.y).dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"nothing to gain with {list(tensors[0].shape)} of {value(candidate.y).dtype}"
    reasons = dict.fromkeys(why_not_in_one_read(call) for call in candidate.calls)
    return "; ".join(reason for reason in reasons if reason) or _why_not_on_device(candidate)


def _why_not_on_device(candidate: Candidate) -> str:
    """What the CUDA kernel does not know; elsewhere it is a composition of the others, which know everything."""
    y = value(candidate.y)
    if y.device.type != "cuda":
        return ""
    rows = [compat.arguments(candidate.rows)[key] for key in ROWS] if candidate.rows is not None else []
    tokens = [compat.arguments(candidate.tokens)[key] for key in TOKENS] if candidate.tokens is not None else []
    return quantize_both.why_not(rows, tokens, y.dtype) or quantize_both.why_not_there(y.device)


def grow_all(candidates: Sequence[Candidate]) -> None:
    """The chains of all candidates; what two of them compute is nobody else's."""
    roots = frozenset(candidate.y for candidate in candidates)
    for candidate in candidates:
        candidate.grow(roots)
    while True:
        inside = frozenset(node for candidate in candidates for node in candidate.chain.nodes)
        pruned = [candidate.chain.prune(inside) for candidate in candidates]
        if not any(pruned):
            return


def _decide(
    joint: JointGraph, candidate: Candidate, all_of_them: list[Candidate], stores: bool
) -> tuple[Site | None, Fusion]:
    """The cheapest way, by bytes; where two cost the same, the simpler one."""
    prologue = candidate.prologue()
    ways = candidate.ways(all_of_them)
    exact = bool(candidate.others or candidate.sums) and not stores
    strided = bool(candidate.others) and not value(candidate.y).is_contiguous()  # the kernel writes rows
    if prologue is None or exact or strided:
        ways.pop("fused", None)
    best = min(ways, key=lambda way: ways[way])
    saved = ways["apart"] - ways[best]
    if best == "fused" and prologue is not None:
        keep = bool(candidate.others)
        site = _site(candidate, *prologue, sums=candidate.sums, keep=keep, chain=candidate.chain.nodes)
        return site, _fact(joint, candidate, candidate.chain.names(), candidate.forms, saved)
    if best == "merged":  # what is merged reads y itself, which stays where it is
        y, sums = candidate.calls[0].all_input_nodes[0], candidate.sums if stores else ()
        site = _site(candidate, Prologue.identity(), (y,), sums=sums, keep=False)
        return site, _fact(joint, candidate, forms=candidate.forms, saved=saved)
    if not candidate.chain.nodes:
        reason = "one kernel reads it, and it has no pointwise producer"
        if candidate.chain.too_long:
            reason = f"its producers are more than {LONGEST} operations"
    else:
        reason = "the forward reads it, too" if exact else "no fewer bytes would be moved"
        reason = "others read it in another order of axes" if strided and not exact else reason
    return None, _fact(joint, candidate, reason=reason)


def _site(
    candidate: Candidate,
    prologue: Prologue,
    leaves: tuple[fx.Node, ...],
    *,
    sums: tuple[fx.Node, ...],
    keep: bool,
    chain: tuple[fx.Node, ...] = (),
) -> Site:
    return Site(candidate.y, candidate.shape, candidate.rows, candidate.tokens, sums, keep, prologue, leaves, chain)


def _fact(
    joint: JointGraph,
    candidate: Candidate,
    operations: tuple[str, ...] = (),
    forms: tuple[str, ...] = (),
    saved: int = 0,
    reason: str = "",
) -> Fusion:
    tensor = "g_y" if candidate.y in joint.tangent_closure else "x"
    layer: Any = module_of(candidate.calls[0])
    return Fusion(layer, tensor, candidate.y.name, operations, forms, saved, reason)
