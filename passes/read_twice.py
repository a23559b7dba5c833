"""Read a tensor twice where one read for both of its forms would raise the peak of memory.

One kernel that makes both forms holds both, and what they are made of, until the first product is done. For the
gradient of a vocabulary's logits, where a backward is at its peak anyhow, that is more than anything later. Two calls,
each in front of its own product, hold one form at a time, the larger one before the other product has made anything;
the integers are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.fx as fx

from hadamard_fx import compat
from hadamard_fx.kernels.library import load
from hadamard_fx.kernels.prologue import Prologue

from .candidates import MAKES_ROWS, MAKES_TOKENS
from .chains import size
from .editing import GraphEditor
from .joint_graph import JointGraph
from .liveness import live_bytes, peak_bytes

__all__ = ["ReadTwice"]

WORTHWHILE = 0.005
"""Share of the peak that must be saved: what is read again takes time."""

_PARTS = {MAKES_ROWS: (1, 2), MAKES_TOKENS: (3, 4, 5)}
"""Results of ``quantize_both`` that belong to a form; the sums come with the tokens."""


@dataclass(frozen=True)
class ReadTwice:
    """Forward, backward or inference graph ⇒ the same with fewer bytes at its peak."""

    name: ClassVar[str] = "read-twice"

    def rewrite(self, joint: JointGraph) -> tuple[tuple[fx.Node, int], ...]:
        """Split calls in place while that lowers the peak.

        Returns:
            One of the two calls for each that was split, and how many bytes are read again.
        """
        split: list[tuple[fx.Node, int]] = []
        while (made := _lower(joint)) is not None:
            split.append(made)
        joint.graph.lint()
        return tuple(split)


def _lower(joint: JointGraph) -> tuple[fx.Node, int] | None:
    """Split the first call whose split lowers the peak."""
    calls = _calls_for_both(joint)
    if not calls:
        return None
    live = live_bytes(joint)
    where = max(live, key=lambda node: live[node])
    for call in calls:
        if not _alive_at(call, where):
            continue
        first, second = _split(call, joint)
        moved = _hoist_readers(first)
        if peak_bytes(joint) <= (1 - WORTHWHILE) * live[where]:
            _erase(call)
            return first, _bytes_read(first)
        for node, following in reversed(moved):
            following.prepend(node)
        for half in (first, second):
            _hand_over(half, call)
            _erase(half)
    return None


def _calls_for_both(joint: JointGraph) -> list[fx.Node]:
    """Calls whose two forms are read, and that do not store y."""
    found = []
    for call in joint.graph.find_nodes(op="call_function", target=load()["quantize_both"].op):
        read = {part.args[1] for part in call.users if part.users}
        if all(read.intersection(parts) for parts in _PARTS.values()) and not compat.arguments(call)["keep"]:
            found.append(call)
    return found


def _alive_at(call: fx.Node, where: fx.Node) -> bool:
    """What ``call`` makes is there while ``where`` runs."""
    last = max((reader for part in call.users for reader in part.users), default=call)
    return bool(call <= where <= last)


def _split(call: fx.Node, joint: JointGraph) -> list[fx.Node]:
    """A call for each form, the larger one first; the old one is left without readers."""
    arguments = compat.arguments(call)
    without: dict[str, dict[str, Any]] = {
        MAKES_ROWS: {"tokens": [], "tokens_rounding": "nearest", "tokens_seed": None, "sums": False},
        MAKES_TOKENS: {"rows": [], "rows_rounding": "nearest", "rows_seed": None},
    }
    editor = GraphEditor(joint, frozenset())
    halves: list[fx.Node] = []
    for form, parts in sorted(_PARTS.items(), key=lambda item: -call.meta["val"][item[1][0]].nbytes):
        readers = [reader for part in call.users if part.args[1] in parts for reader in part.users]
        with joint.graph.inserting_before(min(readers) if halves else call.next):
            given = tuple({**arguments, **without[form]}.values())
            half = editor.call(load()["quantize_both"].op, given, call, backward=False)
            results = editor.results(half, 6)
        _hand_over(call, half, parts)
        for unread in (result for result in results if not result.users):
            joint.graph.erase_node(unread)
        halves.append(half)
    return halves


def _hoist_readers(call: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """Let those that read the results of ``call`` run next; returns what was moved, and from in front of what."""
    anchor = max(call.users)
    needed = {reader for part in call.users for reader in part.users if reader.op != "output"}
    pending = list(needed)
    while pending:
        above = {operand for operand in pending.pop().all_input_nodes if anchor < operand} - needed
        needed |= above
        pending += above
    moved = []
    for node in sorted(needed):
        moved.append((node, node.next))
        anchor.append(node)
        anchor = node
    return moved


def _hand_over(call: fx.Node, to: fx.Node, parts: tuple[int, ...] = tuple(range(6))) -> None:
    """Whoever reads these results of ``call`` reads those of ``to``."""
    heirs = {part.args[1]: part for part in to.users}
    for part in list(call.users):
        if part.args[1] in parts and part.users:
            part.replace_all_uses_with(heirs[part.args[1]])


def _bytes_read(call: fx.Node) -> int:
    """Of the inputs that are as large as y."""
    arguments = compat.arguments(call)
    kinds = Prologue.from_text(arguments["prologue"]).inputs
    return sum(size(read) for read, kind in zip(arguments["inputs"], kinds, strict=True) if kind == "tile")


def _erase(call: fx.Node) -> None:
    """A call whose results nobody reads."""
    for part in list(call.users):
        call.graph.erase_node(part)
    call.graph.erase_node(call)
