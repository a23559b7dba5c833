"""Roll up loops that dynamo has unrolled, into one call of ``kernels/recurrence.py`` each.

    h_1 = σ(h_0 Wᵀ + d_1), h_2 = σ(h_1 Wᵀ + d_2), …  ⇒  states = recurrence(stack(d), W, h_0)

What enters the steps is computed for all of them at once where it is the same function of consecutive slices: U x_t of
every t becomes one product. The result differs from the loop's by the rounding of sums only.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
import torch.fx as fx

from hadamard_fx.kernels import recurrence

from .find_loops import Loop, example, find_loops, has_effects, name_of, product_of

__all__ = ["FEWEST_STEPS", "roll_loops"]

FEWEST_STEPS = 8
"""Shorter loops compile fast enough, and the compiler can fuse their steps with what is around them."""

_META = ("nn_module_stack", "stack_trace", "source_fn_stack")


def roll_loops(gm: fx.GraphModule) -> tuple[str, ...]:
    """Edit dynamo's graph in place.

    Returns:
        a sentence for each loop that was found and could not be rolled up.
    """
    left: dict[fx.Node, str] = {}
    # Searched again behind every loop: what enters one may be the states of another.
    while loop := next((one for one in find_loops(gm.graph, FEWEST_STEPS) if one.states[-1] not in left), None):
        why = loop.obstacle(gm.graph)
        if why:
            steps = f"a loop of {len(loop.states)} steps over {loop.weight.name}"
            left[loop.states[-1]] = f"{steps} is compiled step by step: {why}"
        else:
            _Roller(gm.graph, loop).roll()
    gm.graph.lint()
    gm.recompile()
    return tuple(left.values())


class _Roller:
    def __init__(self, graph: fx.Graph, loop: Loop) -> None:
        self.graph, self.loop = graph, loop
        self.meta = {key: loop.states[0].meta[key] for key in _META if key in loop.states[0].meta}
        self.erased = set[fx.Node]()
        self.order = {node: place for place, node in enumerate(graph.nodes)}

    def roll(self) -> None:
        """Replace the loop."""
        loop = self.loop
        self._move_up([term for terms in loop.driven for term in terms])
        with self.graph.inserting_before(loop.states[0]):
            terms = [self._of_all_steps(column) for column in loop.columns]
            driven = reduce(lambda a, b: self._call(operator.add, a, b), terms)
            initial = loop.initial
            if example(initial).shape != example(loop.states[0]).shape:  # one row for the whole batch
                initial = self._call(torch.Tensor.expand_as, initial, self._call(operator.getitem, driven, 0))
            weight = loop.weight if loop.turned else self._call(torch.t, loop.weight)
            states = self._call(recurrence.KERNEL.op, driven, weight, initial, None, loop.activation)
            self._replace(states)
        self._erase()

    def _call(self, target: Callable[..., Any], *args: Any) -> fx.Node:
        node = self.graph.call_function(target, args)
        node.meta.update(self.meta)
        return node

    def _move_up(self, terms: Sequence[fx.Node]) -> None:
        """What the terms are made of, in front of the first step; none of it depends on a state."""
        first, needed, stack = self.loop.states[0], set[fx.Node](), [*terms, self.loop.initial, self.loop.weight]
        while stack:
            node = stack.pop()
            if node not in needed and self.order[node] > self.order[first]:
                needed.add(node)
                stack += node.all_input_nodes
        for node in sorted(needed, key=self.order.__getitem__):
            first.prepend(node)

    def _replace(self, states: fx.Node) -> None:
        """Stacked states are the result itself, turned; others are read from it."""
        loop = self.loop
        # Other loops may have these states as what enters them.
        states.meta["example_value"] = example(loop.states[0]).expand(len(loop.states), -1, -1)
        for user in list(loop.states[-1].users):
            if name_of(user) == "stack" and user.args[0] in (list(loop.states), loop.states):
                axis = user.args[1] if len(user.args) > 1 else user.kwargs.get("dim", 0)
                user.replace_all_uses_with(self._call(torch.movedim, states, 0, axis))
                self.graph.erase_node(user)
        for place, state in enumerate(loop.states):
            picked = self._call(operator.getitem, states, place)
            picked.meta["example_value"] = example(state)
            state.replace_all_uses_with(picked)

    def _erase(self) -> None:
        """The steps, and what only they read: not all dead code, since changes in place look dead in this graph."""
        stack = [*self.loop.states]
        while stack:
            node = stack.pop()
            if node in self.erased or node.users or node.op == "placeholder" or has_effects(node):
                continue
            operands = node.all_input_nodes
            self.graph.erase_node(node)
            self.erased.add(node)
            stack += operands

    def _of_all_steps(self, nodes: Sequence[fx.Node]) -> fx.Node:
        """One tensor [T, …] for a term of every step, or the term itself where all steps have the same."""
        if len(set(nodes)) == 1:
            return nodes[0]
        sliced = self._sliced(nodes)
        if sliced is not None:
            return sliced
        products = [product_of(node) for node in nodes]
        alike = {None if p is None else (p.weight, p.turned, p.added) for p in products}
        first = products[0]
        if first is None or len(alike) > 1:
            return self._call(torch.stack, tuple(nodes))
        x = self._of_all_steps([p.input for p in products if p is not None])
        weight = first.weight if first.turned else self._call(torch.t, first.weight)
        made = self._call(torch.nn.functional.linear, x, weight)
        return reduce(lambda a, b: self._call(operator.add, a, b), first.added, made)

    def _sliced(self, nodes: Sequence[fx.Node]) -> fx.Node | None:
        """Consecutive slices of one tensor, or all results of one ``unbind``, as that tensor."""
        if any(name_of(node) != "getitem" or node.args[0] is not nodes[0].args[0] for node in nodes):
            return None
        source, places, axis = nodes[0].args[0], [], 0
        assert isinstance(source, fx.Node)
        for node in nodes:
            index: Any = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
            numbers = [place for place, item in enumerate(index) if type(item) is int]
            if len(numbers) != 1 or any(item != slice(None) for item in index if type(item) is not int):
                return None
            axis = numbers[0]
            places.append((axis, index[axis]))
        start = places[0][1]
        if start < 0 or places != [(axis, start + step) for step in range(len(nodes))]:
            return None
        if name_of(source) == "unbind":
            axis = source.args[1] if len(source.args) > 1 else source.kwargs.get("dim", 0)  # type: ignore[assignment]
            source = source.args[0]
        elif not isinstance(source.meta.get("example_value"), torch.Tensor):
            return None
        whole = self._call(torch.movedim, source, axis, 0)
        return self._call(operator.getitem, whole, slice(start, start + len(nodes)))
