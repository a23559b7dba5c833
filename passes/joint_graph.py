"""The joint graph with the facts that every pass asks for: who depends on tangents, who on parameters only.

Notation of the design, section 3: T = the forward closure of the tangents, P = the nodes that depend on parameters
only; a buffer counts as a constant.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx as fx

from hadamard_fx import compat
from hadamard_fx.plan import Size

aten = torch.ops.aten

VIEWS = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten._unsafe_view.default,
        aten.permute.default,
        aten.transpose.int,
        aten.t.default,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.expand.default,
        aten.alias.default,
        aten.detach.default,
    }
)
"""Ops that give the same elements under another shape; no arithmetic, no memory."""

RESHAPES = frozenset({aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.alias.default})
"""Those that keep the order of the elements."""

CASTS = frozenset({aten._to_copy.default, torch.ops.prims.convert_element_type.default})


@dataclass(frozen=True)
class GraphInput:
    """What the backend knows about one input of the captured graph.

    Attributes:
        name: the parameter's full name (``"blocks.0.fc.weight"``), ``""`` where the user's model has none.
        parameter: it is an ``nn.Parameter``.
        requires_grad: it is trained; a parameter without is frozen.
        buffer: it belongs to a module and is no parameter: it holds no tokens either.
    """

    name: str
    parameter: bool
    requires_grad: bool
    buffer: bool = False


def describe_inputs(gm: fx.GraphModule, example_inputs: Iterable[Any]) -> tuple[GraphInput, ...]:
    """The facts about a captured graph's inputs, in order."""
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    described = []
    for node, value in zip(placeholders, example_inputs, strict=True):
        parameter = isinstance(value, torch.nn.Parameter)
        source = compat.source_name(node)
        name = compat.module_path(source) or node.name
        trained = isinstance(value, torch.Tensor) and value.requires_grad
        buffer = not parameter and re.search(r"\b_(buffers|modules)\[", source) is not None
        described.append(GraphInput(name if parameter else "", parameter, trained, buffer))
    return tuple(described)


@dataclass
class JointGraph:
    """A joint (or inference) graph and what the backend knows of its inputs.

    The closures are computed when first asked for and hold for the nodes that were there then: passes that add nodes
    take a fresh ``JointGraph``.
    """

    graph: fx.Graph
    inputs: tuple[GraphInput, ...] = field(default=())

    def facts(self, placeholder: fx.Node) -> GraphInput:
        """What is known of a placeholder; an unknown one is an activation."""
        position, parameter_name = compat.input_position(placeholder)
        if parameter_name:
            return GraphInput(parameter_name, True, bool(value(placeholder).requires_grad))
        if position is not None and position < len(self.inputs):
            return self.inputs[position]
        return GraphInput("", False, False)

    @functools.cached_property
    def tangent_closure(self) -> frozenset[fx.Node]:
        """T: everything that depends on a gradient."""
        closure: set[fx.Node] = set()
        for node in self.graph.nodes:
            tangent = node.op == "placeholder" and "tangents" in str(node.target)
            if tangent or any(operand in closure for operand in node.all_input_nodes):
                closure.add(node)
        return frozenset(closure)

    @functools.cached_property
    def persistent(self) -> dict[fx.Node, frozenset[fx.Node]]:
        """Nodes that depend on parameters, buffers and constants only, with the parameters' placeholders: none of their
        axes holds tokens."""
        sources: dict[fx.Node, frozenset[fx.Node]] = {}
        for node in self.graph.nodes:
            if node.op == "placeholder":
                facts = self.facts(node)
                if facts.parameter or facts.buffer:
                    sources[node] = frozenset({node}) if facts.parameter else frozenset()
            elif node.op != "output" and not _drawn(node) and all(n in sources for n in node.all_input_nodes):
                sources[node] = frozenset().union(*(sources[operand] for operand in node.all_input_nodes))
        return sources

    @functools.cached_property
    def parameters_of(self) -> dict[fx.Node, frozenset[fx.Node]]:
        """P: those of them that depend on a parameter."""
        return {node: parameters for node, parameters in self.persistent.items() if parameters}

    @functools.cached_property
    def _representatives(self) -> dict[fx.Node, fx.Node]:
        """View -> the first view that shows the same elements: every ``F.linear`` makes a view of its own."""
        first: dict[tuple[Any, ...], fx.Node] = {}
        found: dict[fx.Node, fx.Node] = {}
        for node in self.graph.nodes:
            if node.target in VIEWS:
                origin = node.all_input_nodes[0]
                origin = found.get(origin, origin)
                found[node] = first.setdefault((node.target, origin, repr(node.args[1:]), repr(node.kwargs)), node)
        return found

    def representative(self, node: fx.Node) -> fx.Node:
        """One node for all views that show the same elements in the same shape."""
        return self._representatives.get(node, node)

    @functools.cached_property
    def forward_nodes(self) -> frozenset[fx.Node]:
        """Everything that a result of the forward depends on."""
        (outputs,) = self.graph.find_nodes(op="output")[0].args
        results = outputs if isinstance(outputs, (list, tuple)) else (outputs,)
        stack = [node for node in results if isinstance(node, fx.Node) and node not in self.tangent_closure]
        found: set[fx.Node] = set()
        while stack:
            node = stack.pop()
            if node not in found:
                found.add(node)
                stack += node.all_input_nodes
        return frozenset(found)

    def readers(self, node: fx.Node) -> Iterator[fx.Node]:
        """Everything that reads ``node``'s memory, through any chain of views of the forward."""
        views = [strip_views(node)]
        for view in views:
            for user in view.users:
                if user.target in VIEWS and user not in self.tangent_closure:
                    views.append(user)
                else:
                    yield user

    def token_sums(self, node: fx.Node) -> Iterator[fx.Node]:
        """Sums, still in use, over all axes but the last of ``node`` or of a view of it with the same last axis."""
        channels = value(node).shape[-1]
        while node.target in RESHAPES and value(node.all_input_nodes[0]).shape[-1:] == (channels,):
            node = node.all_input_nodes[0]
        views = [node]
        for view in views:
            for user in view.users:
                if user.target in RESHAPES and value(user).shape[-1:] == (channels,):
                    views.append(user)
                elif user.users and sums_all_but_last(user) and all(isinstance(n, int) for n in value(user).shape):
                    yield user

    def held(self, node: fx.Node, ignoring: frozenset[str]) -> bool:
        """``node`` lives until the backward whatever the products named in ``ignoring`` do.

        Because it is data that the caller holds, or because the backward reads it for something else. A mask of bits
        does not count: the backward keeps the mask then.
        """
        root = strip_views(node)
        if root.op == "placeholder" and not self.facts(root).requires_grad:
            return True
        for reader in self.readers(node):
            if reader in self.tangent_closure:
                if reader.name not in ignoring:
                    return True
            elif reader not in self.forward_nodes:
                result = reader.meta.get("val")
                if isinstance(result, torch.Tensor) and result.dtype is not torch.bool:
                    return True
        return False

    @property
    def training(self) -> bool:
        return bool(self.tangent_closure)


def _drawn(node: fx.Node) -> bool:
    """Random numbers of the user's model: they may well be tokens."""
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def value(node: fx.Node) -> torch.Tensor:
    """The fake tensor that stands for a node's result."""
    result: torch.Tensor = node.meta["val"]
    return result


def size_of(extent: int | torch.SymInt) -> Size:
    """An extent for a plan: its number, or its hint and expression."""
    return Size(compat.lookup_hint(extent), compat.symbol(extent))


def sums_all_but_last(node: fx.Node) -> bool:
    """A sum over every axis but the last, the one of the channels, that float32 can hold."""
    if node.target is not aten.sum.dim_IntList or not node.args[1] or value(node).dtype.itemsize > 4:
        return False
    axes = value(node.all_input_nodes[0]).dim()
    return sorted(axis % axes for axis in node.args[1]) == list(range(axes - 1))  # type: ignore[operator, union-attr]


def strip_transpose(node: fx.Node) -> tuple[fx.Node, bool]:
    """The node below a chain of 2-D transposes and aliases, and whether it is transposed in the end."""
    transposed = False
    while True:
        if node.target in (aten.alias.default, aten.detach.default):
            node = node.all_input_nodes[0]
        elif _swaps_two_axes(node):
            node, transposed = node.all_input_nodes[0], not transposed
        else:
            return node, transposed


def _swaps_two_axes(node: fx.Node) -> bool:
    if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor) or value(node).dim() != 2:
        return False
    if node.target is aten.t.default:
        return True
    if node.target is aten.permute.default:
        return [axis % 2 for axis in node.args[1]] == [1, 0]  # type: ignore[union-attr, operator]
    return node.target is aten.transpose.int and node.args[1] % 2 != node.args[2] % 2  # type: ignore[operator]


def strip_views(node: fx.Node) -> fx.Node:
    """The node whose memory a chain of views shows."""
    while node.target in VIEWS:
        node = node.all_input_nodes[0]
    return node


def module_of(node: fx.Node) -> str:
    """The path of the module whose forward made a node, or whose gradient it belongs to; ``""`` for the root."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack") or {}
    path = ""
    for entry, _ in stack.values():
        path = compat.module_path(entry) or path
    return path


def source_line(node: fx.Node) -> str:
    """``"file.py:12: y = self.fc(x)"`` of the user's code, ``""`` when it is not known."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").strip().splitlines()]
    frames = [i for i, line in enumerate(lines) if line.startswith("File ")]
    if not frames:
        return ""
    parts = lines[frames[-1]].split('"')
    number = lines[frames[-1]].partition("line ")[2].partition(",")[0]
    code = lines[frames[-1] + 1] if frames[-1] + 1 < len(lines) else ""
    return f"{parts[1].rsplit('/', 1)[-1]}:{number}: {code}"
