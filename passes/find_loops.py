"""Find loops that dynamo has unrolled: h_t = σ(h_{t−1} Wᵀ + d_t), step after step in the captured graph.

This is dynamo's graph of torch functions, before autograd and before decompositions: what follows costs time for every
node, so that a thousand steps must be rolled up here. A step is recognised by what it computes and not by how it is
spelt: ``F.linear``, ``@``, ``mm`` or ``addmm`` with W or its transpose, any order of the additions, ReLU or tanh.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.fx as fx

__all__ = ["Loop", "Product", "example", "find_loops", "has_effects", "name_of", "product_of", "weight_of"]

_PRODUCTS = {"linear": 0, "matmul": 0, "mm": 0, "addmm": 1}
"""Name of a function ⇒ position of its left operand."""

_TRANSPOSES = ("T", "mT", "t")
_ACTIVATIONS = ("relu", "tanh")
_UNSAFE = ("dropout", "rand", "bernoulli", "multinomial", "autocast", "setitem", "grad_enabled", "checkpoint")


@dataclass(frozen=True)
class Product:
    """x Wᵀ (``turned``) or x W, and what the same call adds to it."""

    input: fx.Node
    weight: fx.Node
    turned: bool
    added: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Loop:
    """One unrolled loop.

    Attributes:
        states: h_1 .. h_T.
        initial: h_0.
        weight, turned: W; turned: h Wᵀ, else h W.
        activation: ``"relu"`` or ``"tanh"``.
        driven: the terms of d_t, for each step.
    """

    states: tuple[fx.Node, ...]
    initial: fx.Node
    weight: fx.Node
    turned: bool
    activation: str
    driven: tuple[tuple[fx.Node, ...], ...]

    @property
    def columns(self) -> list[tuple[fx.Node, ...]]:
        """The first term of every step, the second one and so on; empty where steps have different numbers of them."""
        counts = {len(terms) for terms in self.driven}
        return list(zip(*self.driven, strict=True)) if len(counts) == 1 else []

    def obstacle(self, graph: fx.Graph) -> str:
        """Why the loop cannot be rolled up, ``""`` where it can."""
        terms = [term for terms in self.driven for term in terms]
        nodes = [*self.states, self.initial, self.weight, *terms]
        if not all(isinstance(node.meta.get("example_value"), torch.Tensor) for node in nodes):
            return "something that enters a step is no tensor"
        shape, dtype = example(self.states[0]).shape, example(self.states[0]).dtype
        if any(example(node).dtype != dtype for node in nodes):
            return "not all that enters a step has the dtype of the states"
        if any(example(state).shape != shape for state in self.states):
            return "its states change their shape"
        if len(shape) != 2 or example(self.weight).shape != (shape[1], shape[1]):
            return f"its states are no [batch, features], but {tuple(shape)}"
        varying = [column for column in self.columns if len(set(column)) > 1]
        if not varying or any(example(term).shape != shape for column in varying for term in column):
            return "what enters its steps is not of the shape of the states, or the same at every step"
        return self._entangled(graph)

    def _entangled(self, graph: fx.Graph) -> str:
        """Why the steps cannot be taken out of what is around them."""
        depends: set[fx.Node] = set()
        for node in graph.nodes:
            if node is self.states[0] or any(operand in depends for operand in node.all_input_nodes):
                depends.add(node)
            if depends and has_effects(node):
                return f"{node.name} between its steps must stay in its place"
            if node is self.states[-1]:
                break
        if any(term in depends for terms in self.driven for term in terms):
            return "what enters a step depends on earlier states in other ways than by the recurrent weight"
        return ""


def name_of(node: fx.Node) -> str:
    """The function of a node, whether it is called as a function, a method or an attribute (``W.T``)."""
    if node.op == "call_method":
        return str(node.target)
    if node.op != "call_function":
        return ""
    name = str(getattr(node.target, "__name__", ""))
    return str(node.args[1]) if name == "getattr" else name


def example(node: fx.Node) -> torch.Tensor:
    """The fake tensor that dynamo holds for a node's result."""
    value: torch.Tensor = node.meta["example_value"]
    return value


def weight_of(node: fx.Node) -> tuple[fx.Node, bool]:
    """The node below transposes of a matrix, and whether it is transposed."""
    turned = False
    while name_of(node) in _TRANSPOSES and len(node.all_input_nodes) == 1:
        node, turned = node.all_input_nodes[0], not turned
    return node, turned


def product_of(node: fx.Node) -> Product | None:
    """What a node multiplies, None where it is no product of a node with a matrix."""
    name = name_of(node)
    if name not in _PRODUCTS or node.kwargs or not all(isinstance(a, fx.Node) or a is None for a in node.args):
        return None
    first = _PRODUCTS[name]
    left, right, *others = (*node.args[first:], *node.args[:first])
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node):
        return None
    weight, turned = weight_of(right)
    turned = turned is not (name == "linear")
    return Product(left, weight, turned, tuple(other for other in others if isinstance(other, fx.Node)))


def find_loops(graph: fx.Graph, fewest: int) -> tuple[Loop, ...]:
    """Every loop of at least ``fewest`` steps."""
    steps: dict[tuple[fx.Node, bool, str], dict[fx.Node, tuple[fx.Node, tuple[fx.Node, ...]]]] = defaultdict(dict)
    for node in graph.nodes:
        if name_of(node) in _ACTIVATIONS and node.args and not any(node.kwargs.values()):
            found = list(_readings(node))
            keys = Counter((product.weight, product.turned) for product, _ in found)
            for product, others in found:
                if keys[product.weight, product.turned] == 1:
                    steps[product.weight, product.turned, name_of(node)][node] = product.input, others
    return tuple(
        loop for (weight, turned, activation), own in steps.items() for loop in _chains(own, weight, turned, activation)
        if len(loop.states) >= fewest
    )  # fmt: skip


def _readings(state: fx.Node) -> Iterator[tuple[Product, tuple[fx.Node, ...]]]:
    """For each product in σ's sum: it, and the other terms."""
    argument = state.args[0]
    terms = list(_terms(argument)) if isinstance(argument, fx.Node) else []
    for place, term in enumerate(terms):
        product = product_of(term)
        if product is not None:
            yield product, (*terms[:place], *terms[place + 1 :], *product.added)


def _terms(node: fx.Node) -> Iterator[fx.Node]:
    if name_of(node) == "add" and not node.kwargs and all(isinstance(a, fx.Node) for a in node.args):
        for operand in node.args:
            yield from _terms(operand)  # type: ignore[arg-type]
    else:
        yield node


def _chains(
    steps: dict[fx.Node, tuple[fx.Node, tuple[fx.Node, ...]]], weight: fx.Node, turned: bool, activation: str
) -> Iterator[Loop]:
    following: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for state, (before, _) in steps.items():
        following[before].append(state)
    for state, (initial, _) in steps.items():
        if initial in steps:
            continue
        states = [state]
        while len(following[states[-1]]) == 1:
            states.append(following[states[-1]][0])
        if not following[states[-1]]:  # a state with two successors makes no loop
            yield Loop(tuple(states), initial, weight, turned, activation, tuple(steps[s][1] for s in states))


def has_effects(node: fx.Node) -> bool:
    """Whether the order of a node among others matters: random numbers, changes in place, contexts."""
    name = name_of(node)
    in_place = (name.endswith("_") and not name.endswith("__")) or name in ("iadd", "imul", "isub", "itruediv")
    return in_place or any(word in name for word in _UNSAFE) or node.kwargs.get("inplace") is True
