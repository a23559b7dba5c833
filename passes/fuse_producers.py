"""Replace the quantising calls of a tensor, and its producers, by one call of ``quantize_both``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.fx as fx

from hadamard_fx import compat
from hadamard_fx.kernels.library import load

from .candidates import ROWS, TOKENS
from .editing import GraphEditor
from .find_producers import Site
from .joint_graph import VIEWS, JointGraph, value

aten = torch.ops.aten


def _shape(kind: str, length: int, channels: int) -> list[int]:
    """Of an input of ``quantize_both``."""
    return {"tile": [length, channels], "row": [length, 1], "column": [1, channels], "scalar": []}[kind]


@dataclass(frozen=True)
class FuseProducers:
    """Sites × graph ⇒ the graph with one ``hadamard::quantize_both`` at each site."""

    name: ClassVar[str] = "fuse-producers"
    sites: tuple[Site, ...]

    def rewrite(self, joint: JointGraph) -> None:
        """Edit the graph in place; seeds keep their order, so that every rounding draws what it drew before."""
        editor = _Editor(GraphEditor(joint, frozenset()))
        for site in self.sites:
            editor.rewrite(site)
        joint.graph.lint()


@dataclass
class _Editor:
    """``stored``: what stands for a y that a kernel keeps, or for a sum that it makes, for the sites after it."""

    editor: GraphEditor
    stored: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def rewrite(self, site: Site) -> None:
        calls = site.calls
        seeds = [seed for call in calls if isinstance(seed := compat.arguments(call)["seed"], fx.Node)]
        graph = self.editor.graph
        where = site.where
        seeds += [signs for call in calls if isinstance(signs := compat.arguments(call).get("signs"), fx.Node)]
        for node in sorted(_with_operands(seeds)):
            if where < node:
                where.prepend(node)  # a seed, and what it is made of: inputs of the graph, or the vector of all seeds
        with graph.inserting_before(where):
            both = self._call(site, calls[0])
            y, rows_q, rows_scale, tokens_q, tokens_scale, sums = self.editor.results(both, 6)
            if site.rows is not None:
                _replace_parts(site.rows, (rows_q, rows_scale))
            if site.tokens is not None:
                _replace_parts(site.tokens, (tokens_q, tokens_scale, sums))
            for total in site.sums:
                self.stored[total] = self.editor.finish_sum(total, sums, backward=False)
            if site.keep:
                self._replace_y(site, y)
        for call in calls:
            graph.erase_node(call)
        for part in (y, rows_q, rows_scale, tokens_q, tokens_scale, sums):
            if not part.users:
                graph.erase_node(part)
        _erase_unread([*site.sums, site.y, *site.chain], graph)

    def _call(self, site: Site, like: fx.Node) -> fx.Node:
        inputs = [
            self._shaped(self.stored.get(leaf, leaf), _shape(kind, *site.shape), like)
            for leaf, kind in zip(site.leaves, site.prologue.inputs, strict=True)
        ]
        rows = compat.arguments(site.rows) if site.rows is not None else {}
        tokens = compat.arguments(site.tokens) if site.tokens is not None else {}
        arguments: tuple[Any, ...] = (
            inputs,
            site.prologue.to_text(),
            value(site.y).dtype,
            [rows[name] for name in ROWS] if rows else [],
            rows.get("rounding", "nearest"),
            rows.get("carrier", "int8"),
            rows.get("seed"),
            [tokens[name] for name in TOKENS] if tokens else [],
            tokens.get("rounding", "nearest"),
            tokens.get("seed"),
            bool(site.sums) or tokens.get("sums", False),
            site.keep,
            tokens.get("signs"),
        )
        return self.editor.call(load()["quantize_both"].op, arguments, like, backward=False)

    def _shaped(self, node: fx.Node, shape: list[int], like: fx.Node) -> fx.Node:
        if list(value(node).shape) == shape:
            return node
        return self.editor.call(aten.reshape.default, (node, shape), like, backward=False)

    def _replace_y(self, site: Site, y: fx.Node) -> None:
        """Whoever else reads y reads what the kernel wrote."""
        stored = self._shaped(y, list(value(site.y).shape), site.y)
        site.y.replace_all_uses_with(stored)
        self.stored[site.y] = stored


def _with_operands(nodes: list[fx.Node]) -> set[fx.Node]:
    """They, and all that they are computed from but for inputs of the graph."""
    found, pending = set[fx.Node](), list(nodes)
    while pending:
        node = pending.pop()
        if node not in found and node.op != "placeholder":
            found.add(node)
            pending += node.all_input_nodes
    return found


def _replace_parts(call: fx.Node, parts: tuple[fx.Node, ...]) -> None:
    """The ``getitem`` nodes of a call that goes away."""
    for old in list(call.users):
        index = old.args[1]
        assert isinstance(index, int)
        old.replace_all_uses_with(parts[index])
        old.graph.erase_node(old)


def _erase_unread(nodes: list[fx.Node], graph: fx.Graph) -> None:
    """What nobody reads any longer, from the end, and the views that nobody reads."""
    views = [user for node in nodes for user in node.users if user.target in VIEWS]
    for node in sorted({*nodes, *views}, reverse=True):
        if not node.users and node.op == "call_function":
            graph.erase_node(node)
