"""Which products make up a recurrence, by what depends on what in the forward (QORNN, arXiv 2402.04012, eq. 1).

- recurrent: a product whose activations depend on an earlier product of the same weight, W h_{t−1} from the second
  step on; with it all products of that weight, the first step's too.
- input: a product of a weight that is not recurrent whose result reaches a recurrent product, or is added to one, by
  way of no other product: U x_t. An encoder in front of U is none, nor is the output layer V, which nothing recurrent
  reads.

So a loop is recognised whatever its code looks like. A weight that is used at one step only shows no recurrence; layers
that share a weight one behind the other, in depth instead of in time, are one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import torch.fx as fx

from hadamard_fx.kernels import recurrence, walsh_recurrence
from hadamard_fx.plan import Gemm, Role

from .joint_graph import JointGraph

__all__ = ["mark_recurrences"]

RECURRENT, INPUT = "recurrent", "input"
ALL_STEPS = frozenset({recurrence.KERNEL.op, walsh_recurrence.KERNEL.op})
"""The operators that hold all steps and are called by users: recurrent by what they are. The latter has no weight."""


def mark_recurrences(joint: JointGraph, gemms: dict[fx.Node, Gemm]) -> dict[fx.Node, Gemm]:
    """The products with ``recurrence`` set, in the same order; backward products follow the weight that they read."""
    of_parameters = frozenset(node.name for node in joint.parameters_of)
    weights = {node: _weight(gemm, of_parameters) for node, gemm in gemms.items() if _of_a_weight(gemm)}
    recurrent = _recurrent(joint, weights) | {weights[n] for n in weights if n.target in ALL_STEPS}
    starts = {node for node, weight in weights.items() if weight in recurrent}
    starts |= {node for node in joint.graph.nodes if node.target in ALL_STEPS}
    if not starts:
        return gemms
    kinds = {**dict.fromkeys(_inputs(weights, starts, gemms) - recurrent, INPUT), **dict.fromkeys(recurrent, RECURRENT)}
    return {node: replace(gemm, recurrence=_kind(node, gemm, weights, kinds)) for node, gemm in gemms.items()}


def _of_a_weight(gemm: Gemm) -> bool:
    """A forward product of a parameter; that of constant states with W, the first step, is one of parameters only."""
    return not gemm.gradient and gemm.role in (Role.FORWARD, Role.PARAMETERS) and bool(gemm.weight)


def _weight(gemm: Gemm, of_parameters: frozenset[str]) -> str:
    """The weight operand, the right one where both depend on parameters."""
    return gemm.right if gemm.right in of_parameters else gemm.left


def _kind(node: fx.Node, gemm: Gemm, weights: dict[fx.Node, str], kinds: dict[str, str]) -> str:
    if gemm.gradient:
        return kinds.get(gemm.saved, "")
    return kinds.get(weights.get(node, ""), "")


def _recurrent(joint: JointGraph, weights: dict[fx.Node, str]) -> set[str]:
    """Weights that multiply what depends on an earlier product of theirs."""
    uses = Counter(weights.values())
    bits = {weight: 1 << place for place, weight in enumerate(w for w, count in uses.items() if count > 1)}
    found: set[str] = set()
    earlier: dict[fx.Node, int] = {}  # the weights, as bits, that a node depends on through a product
    for node in joint.graph.nodes if bits else ():
        if node in joint.tangent_closure:
            continue
        depends = 0
        for operand in node.all_input_nodes:
            depends |= earlier.get(operand, 0)
        own = bits.get(weights.get(node, ""), 0)
        if depends & own:
            found.add(weights[node])
        earlier[node] = depends | own
    return found


def _inputs(weights: dict[fx.Node, str], starts: set[fx.Node], gemms: dict[fx.Node, Gemm]) -> set[str]:
    """Weights of the products that the operands of the recurrent ones are made of, and of nothing in between."""
    stack, seen, found = list(starts), set(starts), set[str]()
    while stack:
        node = stack.pop()
        if node in gemms and node not in starts:
            if gemms[node].role is Role.FORWARD:
                found.add(weights[node])
            continue
        fresh = [operand for operand in node.all_input_nodes if operand not in seen]
        seen.update(fresh)
        stack += fresh
    return found
