"""Find every matrix product of a joint graph and say what it computes for which layer (design, section 3: roles).

A backward product has one operand in T. It belongs to the forward product with its ``seq_nr``: if its other operand is
the forward's left one, it is the gradient of the right one, and the other way round. "The other operand is a
placeholder, so it is the weight" would be wrong: a first layer's x is a placeholder too. The gradients of a convolution
say themselves which is which.
"""

from __future__ import annotations

import math
import operator
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.fx as fx

from hadamard_fx import compat
from hadamard_fx.kernels import recurrence, recurrence_backward
from hadamard_fx.plan import Gemm, Role, Size

from .convolutions import BACKWARD, FORWARD, Convolution, describe, is_convolution
from .find_recurrence import mark_recurrences
from .joint_graph import (
    RESHAPES,
    VIEWS,
    JointGraph,
    module_of,
    size_of,
    source_line,
    strip_transpose,
    strip_views,
    value,
)

aten = torch.ops.aten

LEFT_OPERAND = {
    aten.mm.default: 0,
    aten.addmm.default: 1,
    aten.bmm.default: 0,
    aten.baddbmm.default: 1,
    FORWARD: 0,
    recurrence.KERNEL.op: 0,
    recurrence_backward.KERNEL.op: 0,
}
"""Position of the left operand; the right one follows it. The two last are one product for each step."""


@dataclass(frozen=True)
class FindGemms:
    """Joint graph ⇒ its products, in graph order."""

    name: ClassVar[str] = "find-gemms"

    def analyse(self, joint: JointGraph) -> tuple[Gemm, ...]:
        """Every mm, addmm, bmm, baddbmm and convolution with role, sizes, layer name and operands."""
        products = [node for node in joint.graph.nodes if node.target in LEFT_OPERAND]
        forward = {node: _describe_forward(joint, node) for node in products if not _backward(joint, node)}
        _separate_layers(forward)
        partners = _Partners(joint, forward)
        gemms = {node: forward[node] if node in forward else partners.describe(node) for node in products}
        for call in joint.graph.find_nodes(op="call_function", target=BACKWARD):
            gemms.update(partners.of_convolution(Convolution.of(call)))
        by_name = {node.name: node for node in gemms}
        readers = weight_readers(by_name[gemm.node] for gemm in gemms.values() if gemm.role is Role.GRAD_WEIGHT)
        judged = {
            node: replace(
                gemms[node], held=_held(joint, node, gemms[node], readers), sequence=_sequence(node, gemms[node])
            )
            for node in sorted(gemms)
        }
        return tuple(mark_recurrences(joint, judged).values())


def _held(joint: JointGraph, node: fx.Node, gemm: Gemm, readers: frozenset[str]) -> bool:
    if gemm.role is not Role.GRAD_WEIGHT:
        return False
    if node.target is operator.getitem:
        return joint.held(Convolution.of(node.all_input_nodes[0]).x, readers)
    left, right = operands(node)
    return joint.held(right if gemm.gradient == "left" else left, readers)


def weight_readers(products: Iterable[fx.Node]) -> frozenset[str]:
    """Names of the nodes that read x for the given gradients of weights: themselves, or the call that they are of."""
    calls = (node.all_input_nodes[0] if node.target is operator.getitem else node for node in products)
    return frozenset(call.name for call in calls)


def _sequence(node: fx.Node, gemm: Gemm) -> int:
    """The tokens behind the first axis of the tensor that a product of all of them flattens, 0 where none is known."""
    if gemm.role is not Role.GRAD_WEIGHT:
        return 0
    if node.target is operator.getitem:
        return Convolution.of(node.all_input_nodes[0]).sequence
    left, right = operands(node)
    flat = strip_transpose(right if gemm.gradient == "left" else left)[0]
    if flat.target not in RESHAPES:
        return 0
    shape, channels = value(flat.all_input_nodes[0]).shape, value(flat).shape[-1]
    tokens = shape[1:-1]
    if not tokens or shape[-1] != channels or not all(isinstance(extent, int) for extent in tokens):
        return 0
    return math.prod(tokens)


def operands(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The two factors of a product."""
    first = LEFT_OPERAND[node.target]
    left, right = node.args[first], node.args[first + 1]
    assert isinstance(left, fx.Node) and isinstance(right, fx.Node)
    return left, right


def _whole(node: fx.Node) -> fx.Node:
    """What ``node`` is some steps of."""
    while node.target in VIEWS or node.target is aten.slice.Tensor:
        node = node.all_input_nodes[0]
    return node


def _left_factors(node: fx.Node) -> tuple[fx.Node, ...]:
    """What the right operand is multiplied with; by a recurrence its own states, and the initial one."""
    if node.target is not recurrence.KERNEL.op:
        return operands(node)[:1]
    return node, compat.arguments(node)["initial"]


def _backward(joint: JointGraph, node: fx.Node) -> bool:
    return any(operand in joint.tangent_closure for operand in operands(node))


def _describe(
    joint: JointGraph, node: fx.Node, role: Role, layer: str, weight: str, frozen: bool, gradient: str = ""
) -> Gemm:
    if is_convolution(node):
        return describe(Convolution.of(node), node, role, layer, weight, frozen)
    left, right = operands(node)
    *batch, rows, contracted = value(left).shape
    return Gemm(
        node=node.name,
        role=role,
        layer=layer,
        M=size_of(rows),
        N=size_of(value(right).shape[-1]),
        K=size_of(contracted),
        dtype=str(value(left).dtype).removeprefix("torch."),
        device=value(left).device.type,
        left=joint.representative(strip_transpose(left)[0]).name,
        right=joint.representative(strip_transpose(right)[0]).name,
        op=str(node.target).split(".")[1] + (" with factors" if node.kwargs else ""),
        gradient=gradient,
        batch=size_of(batch[0]) if batch else Size(1),
        weight=weight,
        frozen=frozen,
        source=source_line(node),
    )


def _describe_forward(joint: JointGraph, node: fx.Node) -> Gemm:
    parameters: frozenset[fx.Node] = frozenset()
    # The right one first: a layer's weight. A convolution's weight is the right one and nothing else.
    for operand in reversed(operands(node)[1:] if is_convolution(node) else operands(node)):
        parameters = parameters or joint.parameters_of.get(operand, frozenset())
    facts = [joint.facts(parameter) for parameter in sorted(parameters, key=lambda p: p.name)]
    role = Role.FORWARD if facts else Role.ACTIVATION
    if facts and all(operand in joint.persistent for operand in operands(node)):
        role = Role.PARAMETERS
    weight = ", ".join(fact.name for fact in facts)
    frozen = bool(facts) and not any(fact.requires_grad for fact in facts)
    layer = _layer_of(node, [fact.name for fact in facts])
    return _describe(joint, node, role, layer, weight, frozen)


def _layer_of(node: fx.Node, weights: list[str]) -> str:
    """The module that computes a product, or a deeper one that owns its weight (``MultiheadAttention.out_proj``)."""
    module = module_of(node)
    owner = weights[0].rpartition(".")[0] if len(weights) == 1 else ""
    deeper = owner if owner.startswith(f"{module}.") or not module else ""
    return deeper or module or ", ".join(weights).removesuffix(".weight") or node.name


def _separate_layers(forward: dict[fx.Node, Gemm]) -> None:
    """Give the products of one module distinct names: by their parameter where that differs, then by their number."""
    by_layer: dict[str, list[fx.Node]] = defaultdict(list)
    for node, gemm in forward.items():
        by_layer[gemm.layer].append(node)
    for layer, nodes in by_layer.items():
        if len(nodes) == 1:
            continue
        leaves = [forward[node].weight.rpartition(".")[2] for node in nodes]
        counted, seen = Counter(leaves), Counter[str]()
        for node, leaf in zip(nodes, leaves, strict=True):
            name = f"{layer}.{leaf}" if leaf and len(counted) > 1 else layer
            distinct = name if name != layer and counted[leaf] == 1 else f"{name}#{seen[leaf]}"
            seen[leaf] += 1
            forward[node] = replace(forward[node], layer=distinct)


class _Partners:
    """Finds the forward product that a backward product belongs to."""

    def __init__(self, joint: JointGraph, forward: dict[fx.Node, Gemm]) -> None:
        self.joint = joint
        self.forward = forward
        self.by_sequence: dict[int, list[fx.Node]] = defaultdict(list)
        for node in forward:
            if node.meta.get("seq_nr") is not None:
                self.by_sequence[node.meta["seq_nr"]].append(node)

    def describe(self, node: fx.Node) -> Gemm:
        left, right = operands(node)
        in_tangents = [operand in self.joint.tangent_closure for operand in (left, right)]
        if all(in_tangents) or is_convolution(node):
            return _describe(self.joint, node, Role.ACTIVATION, module_of(node) or node.name, "", False)
        saved, gradient = (right, "left") if in_tangents[0] else (left, "right")
        for partner, is_left in self._matches(node, saved):
            gemm = self.forward[partner]
            differentiated = operands(partner)[1 if is_left else 0]
            other = operands(partner)[0 if is_left else 1]
            if gemm.role is Role.PARAMETERS:
                return _describe(self.joint, node, Role.PARAMETERS, gemm.layer, gemm.weight, gemm.frozen, gradient)
            if differentiated in self.joint.parameters_of:
                # The first step of a loop reads a state that no token gave.
                role = Role.PARAMETERS if saved in self.joint.persistent else Role.GRAD_WEIGHT
                return _describe(self.joint, node, role, gemm.layer, gemm.weight, gemm.frozen, gradient)
            role = Role.GRAD_INPUT if other in self.joint.parameters_of else Role.ACTIVATION
            return _describe(self.joint, node, role, gemm.layer, gemm.weight, gemm.frozen, gradient)
        return self._without_partner(node, saved, gradient)

    def of_convolution(self, convolution: Convolution) -> Iterator[tuple[fx.Node, Gemm]]:
        """The products of a call of ``convolution_backward``, each with the node that takes it out."""
        call, weight = convolution.call, convolution.weight
        both = (convolution.x, weight)
        same = (node for node in self.by_sequence.get(call.meta.get("seq_nr", -1), ()) if operands(node) == both)
        partner = next(same, None)
        facts = [self.joint.facts(p) for p in sorted(self.joint.parameters_of.get(weight, ()), key=lambda p: p.name)]
        layer = _layer_of(call, [fact.name for fact in facts]) if partner is None else self.forward[partner].layer
        frozen = bool(facts) and not any(fact.requires_grad for fact in facts)
        one_sided = convolution.gradient in self.joint.tangent_closure and not self.joint.tangent_closure & {*both}
        for node, role in convolution.products():
            if convolution.x in self.joint.persistent and facts:
                role = Role.PARAMETERS
            elif not (facts and one_sided):
                role = Role.ACTIVATION
            yield node, describe(convolution, node, role, layer, ", ".join(fact.name for fact in facts), frozen)

    def _matches(self, node: fx.Node, saved: fx.Node) -> Iterator[tuple[fx.Node, bool]]:
        """Forward products that share ``saved`` as an operand, and whether it is their left one."""
        root = strip_views(saved)
        for partner in self.by_sequence.get(node.meta.get("seq_nr", -1), ()):
            right = operands(partner)[1]
            if strip_views(right) is root:
                yield partner, False
            if any(strip_views(left) in (root, _whole(root)) for left in _left_factors(partner)):
                yield partner, True

    def _without_partner(self, node: fx.Node, saved: fx.Node, gradient: str) -> Gemm:
        """A product whose forward was traced away (a custom autograd function): only its operands speak."""
        parameters = self.joint.parameters_of.get(saved, frozenset())
        facts = [self.joint.facts(parameter) for parameter in sorted(parameters, key=lambda p: p.name)]
        weight = ", ".join(fact.name for fact in facts)
        layer = module_of(node) or weight.removesuffix(".weight") or node.name
        frozen = bool(facts) and not any(fact.requires_grad for fact in facts)
        role = Role.GRAD_INPUT if facts else Role.ACTIVATION
        return _describe(self.joint, node, role, layer, weight, frozen, gradient)
