"""Inserting nodes into a joint graph: each gets ``meta["val"]`` from its op's fake; shared work is made once."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.fx as fx

from hadamard_fx import compat
from hadamard_fx.kernels.signs import seed_of

from .joint_graph import JointGraph, strip_transpose, value

aten, prims = torch.ops.aten, torch.ops.prims

SAVE = "hadamard_fx_save"
"""``meta`` key of an op whose results the forward must keep for the backward."""

PRODUCT = "hadamard_fx_product"
"""``meta`` key of a node that a scheme's rule built: the product, by name, whose decision answers for it."""

MATRIX = "hadamard_fx_matrix"
"""``meta`` key of a convolution's operand as a matrix: what it holds, however often it is made."""

IN_BACKWARD = "must_be_in_backward"
"""The partitioner's tag of a node that it must not compute in the forward."""

_INHERITED = ("nn_module_stack", "fwd_nn_module_stack", "stack_trace", "seq_nr", "original_aten", "custom")
_RECOMPUTE = ("recompute", "ac_graph_id")


class GraphEditor:
    """Builds nodes in a joint graph; work that several products share is built once.

    Args:
        joint: the graph and its closures, which hold for the nodes that were there before the first edit.
        rewritten: names of the products that the plan rewrites.
        counters: what the names of the products' counters begin with; ``""`` where nothing is counted.
    """

    def __init__(self, joint: JointGraph, rewritten: frozenset[str], counters: str = "") -> None:
        self.joint = joint
        self.graph = joint.graph
        self._rewritten = rewritten
        self._counters = counters
        self._made: dict[Hashable, Any] = {}
        self._seed_vectors: dict[torch.device, fx.Node] = {}
        self._ahead: set[fx.Node] = set()
        """Nodes that stand in front of all others, because any of these may read them."""
        self.product = ""
        """The product that a rule is about to replace, ``""`` where no rule is at work."""

    def call(self, target: Any, args: tuple[Any, ...], like: fx.Node, *, backward: bool) -> fx.Node:
        """A new call in front of the current insertion point.

        Args:
            target: an op overload.
            args: nodes and constants.
            like: the node whose module, source line and sequence number the new one inherits.
            backward: the partitioner must compute it in the backward graph.
        """
        node = self.graph.call_function(target, args)
        node.meta.update({key: like.meta[key] for key in _INHERITED if key in like.meta})
        fakes = fx.map_arg(args, lambda operand: operand.meta["val"])
        with compat.fresh_fake_mode(fakes):
            node.meta["val"] = target(*fakes)
        return self._tagged(node, backward)

    def finish_sum(self, total: fx.Node, partial: fx.Node, *, backward: bool) -> fx.Node:
        """Put a sum of partial ones, float32 [parts, channels], in the place of ``total``, a sum over the tokens.

        It is exact but for the order of the additions.
        """
        expected = value(total)
        result = self.call(aten.sum.dim_IntList, (partial, [0]), total, backward=backward)
        if expected.dtype != torch.float32:
            result = self.call(prims.convert_element_type.default, (result, expected.dtype), total, backward=backward)
        if expected.shape != value(result).shape:
            result = self.call(aten.view.default, (result, list(expected.shape)), total, backward=backward)
        total.replace_all_uses_with(result)
        return result

    def _tagged(self, node: fx.Node, backward: bool) -> fx.Node:
        if self.product:
            node.meta[PRODUCT] = self.product
        if backward:
            node.meta["partitioner_tag"] = IN_BACKWARD
        return node

    def inline(
        self, function: Callable[..., torch.Tensor], operands: tuple[fx.Node, ...], like: fx.Node, *, backward: bool
    ) -> fx.Node:
        """``function(*operands)`` as nodes in front of the current insertion point; returns its result.

        The formula that a test holds against the paper is thereby the one that runs.

        Args:
            function: one tensor from tensors, pure, in PyTorch; no branch on their values.
            like, backward: as in ``call``; where a checkpointed region recomputes ``like``, it recomputes these too.
        """
        values = [value(operand) for operand in operands]
        traced, mode = self._trace(function, values), compat.fresh_fake_mode(values)
        inputs, made = iter(operands), {}
        for node in traced.nodes:
            if node.op == "placeholder":
                made[node] = next(inputs)
            elif node.op == "output":
                result: fx.Node = made[node.args[0]]
            else:
                copy = made[node] = self.graph.node_copy(node, made.__getitem__)
                copy.meta = {key: like.meta[key] for key in _INHERITED if key in like.meta}
                args, kwargs = fx.map_arg((copy.args, copy.kwargs), lambda operand: operand.meta["val"])
                with mode:  # a fake of its own: two nodes that share one would pass for one tensor
                    copy.meta["val"] = node.target(*args, **kwargs)
                # A size that is read off an operand must not hold the operand until the backward.
                self._tagged(copy, backward and isinstance(copy.meta["val"], torch.Tensor))
                if not backward:
                    inherit_recomputation(copy, like)
        return result

    def _trace(self, function: Callable[..., torch.Tensor], values: list[torch.Tensor]) -> fx.Graph:
        """``compat.trace``; layers of the same sizes share one, which takes far longer than to copy it."""
        parts: tuple[Any, ...] = (function,)
        if isinstance(function, functools.partial):  # two of them are never equal
            parts = (function.func, function.args, *function.keywords.items())
        layouts = tuple((*value.shape, *value.stride(), value.dtype, value.device) for value in values)
        fixed = all(not isinstance(entry, torch.SymInt) for layout in layouts for entry in layout)
        if not fixed:
            return compat.trace(function, values)
        traced: fx.Graph = self.once(("traced", parts, layouts), lambda: compat.trace(function, values))
        return traced

    def uniform(self, like: fx.Node) -> fx.Node:
        """Random numbers in [0, 1), float32, in the shape of ``like``: drawn anew in every backward pass."""
        seed = self.seed(value(like).device, like)
        shape = [
            extent if isinstance(extent, int) else self.call(aten.sym_size.int, (like, axis), like, backward=True)
            for axis, extent in enumerate(value(like).shape)
        ]
        return self.call(compat.random_op, (shape, seed, "rand"), like, backward=True)

    def results(self, node: fx.Node, count: int) -> tuple[fx.Node, ...]:
        """The ``getitem`` nodes of a call with several results."""
        parts = []
        for index in range(count):
            part = self.graph.call_function(operator.getitem, (node, index))
            part.meta.update({k: v for k, v in node.meta.items() if k != "val"})
            part.meta["val"] = node.meta["val"][index]
            parts.append(part)
        return tuple(parts)

    def once(self, key: Hashable, build: Callable[[], Any]) -> Any:
        """``build()`` the first time that ``key`` is seen, the same nodes afterwards."""
        if key not in self._made:
            self._made[key] = build()
        return self._made[key]

    def transposed(self, node: fx.Node, *, backward: bool) -> fx.Node:
        """``node`` with its two axes swapped; a transpose of a transpose is the node itself."""
        base, swapped = strip_transpose(node)
        if swapped:
            return base
        return self.call(aten.permute.default, (node, [1, 0]), node, backward=backward)

    def seed(self, device: torch.device, like: fx.Node) -> fx.Node:
        """A 0-d int64 tensor on ``device``: a fresh random seed per step, one per call of this method."""
        if device not in self._seed_vectors:
            self._seed_vectors[device] = self._draw_seeds(device, like)
        vector = self._seed_vectors[device]
        index = vector.args[0]
        assert isinstance(index, int)
        # Every second element starts at a multiple of 16 bytes. Where an operator's input does not, Inductor takes its
        # results, and all that is computed from them, to start anywhere, and gives up wide loads.
        vector.args = (index + 2, *vector.args[1:])
        with compat.fresh_fake_mode([value(vector)]):
            vector.meta["val"] = value(vector).new_empty([index + 2])
        return self.call(aten.select.int, (vector, 0, index), like, backward=True)

    def signs(self, device: torch.device, like: fx.Node) -> fx.Node:
        """A 0-d int64 tensor on ``device``: the seed of the tokens' signs, one for all products of a step, in the
        forward, where activations are compressed; from the inputs of the graph (``kernels/signs.py``)."""

        def build() -> fx.Node:
            before = set(self.graph.nodes)
            product, self.product = self.product, ""
            with self.graph.inserting_before(self._first()):
                seed: fx.Node = self.inline(seed_of, self._of_this_step(device), like, backward=False)
            self.product = product
            self._ahead.update(node for node in self.graph.nodes if node not in before)
            return seed

        found: fx.Node = self.once(("signs", device), build)
        return found

    def _of_this_step(self, device: torch.device) -> tuple[fx.Node, ...]:
        """Inputs that differ from step to step: the first of the data, and two of the weights that are trained.

        What an earlier graph computed is the last resort: a backward that makes the seed again would keep it.
        """
        data: list[fx.Node] = []
        weights: list[fx.Node] = []
        others: list[fx.Node] = []
        for node in self.graph.find_nodes(op="placeholder"):
            if node in self.joint.tangent_closure or not _has_rows(node, device):
                continue
            facts = self.joint.facts(node)
            if facts.parameter and facts.requires_grad:
                weights.append(node)
            elif not (facts.parameter or facts.buffer or facts.requires_grad):
                data.append(node)
            else:
                others.append(node)
        found = tuple(dict.fromkeys([*weights[:1], *weights[-1:], *data[:1]])) or tuple(others[:1])
        assert found, "a product has operands"
        return found

    def _first(self) -> fx.Node:
        first: fx.Node = next(node for node in self.graph.nodes if node.op != "placeholder")
        return first

    def _draw_seeds(self, device: torch.device, like: fx.Node) -> fx.Node:
        with self.graph.inserting_before(self._first()):
            vector = self.graph.call_function(compat.seeds_op, (0, device))
        vector.meta["partitioner_tag"] = IN_BACKWARD
        mode = compat.fresh_fake_mode([like.meta["val"]])
        with mode:
            vector.meta["val"] = torch.empty([0], dtype=torch.int64, device=device)
        return vector

    def counter(self, node: fx.Node) -> str:
        """The name under which a product counts its saturated sums, ``""`` where it is not to count."""
        return f"{self._counters} {node.name}" if self._counters else ""

    def behind(self, node: fx.Node) -> AbstractContextManager[Any]:
        """Insert right behind ``node``, so that it need not live any longer; behind the inputs and seeds at least."""
        following = node.next
        while following.op == "placeholder" or following in self._ahead:
            following = following.next
        return self.graph.inserting_before(following)

    def compresses_in_backward(self, node: fx.Node) -> bool:
        """``node`` lives until the backward anyhow, so that keeping a compressed copy beside it would only cost; or it
        is made there.

        A checkpointed region holds what enters it: what is made outside and read inside.
        """
        if node.meta.get("partitioner_tag") == IN_BACKWARD:
            return True
        enters = "recompute" not in node.meta and any("recompute" in r.meta for r in self.joint.readers(node))
        return enters or self.joint.held(node, self._rewritten)


def inherit_recomputation(node: fx.Node, origin: fx.Node) -> bool:
    """In a checkpointed region the user decided what is kept: follow the tensor that is compressed.

    Returns:
        whether ``origin`` lies in such a region.
    """
    tags = {key: origin.meta[key] for key in _RECOMPUTE if key in origin.meta}
    node.meta.update(tags)
    return "recompute" in tags


def _has_rows(node: fx.Node, device: torch.device) -> bool:
    """An input is a tensor on ``device`` whose first row has bits to read."""
    tensor = node.meta.get("val")
    if not isinstance(tensor, torch.Tensor) or tensor.device != device or tensor.dtype.is_complex:
        return False
    return all(compat.statically_known_true(extent > 0) for extent in tensor.shape)
