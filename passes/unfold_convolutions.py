"""Express the convolutions that a plan rewrites as products of matrices; all others stay the calls that they are.

The node of a product keeps its name and becomes an mm (an addmm where there is a bias), so that the scheme's rule meets
what it meets in a linear layer. Where one gradient of a convolution is rewritten and the other is not, the call of
``convolution_backward`` computes only the other one: its results are independent of each other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.fx as fx

from hadamard_fx import compat
from hadamard_fx.kernels import windows
from hadamard_fx.plan import Decision, Role

from .convolutions import BIAS, CONVOLUTION, Convolution, gradients
from .editing import MATRIX, GraphEditor
from .find_gemms import weight_readers
from .joint_graph import CASTS, JointGraph, value
from .unfolding import keeps_columns

__all__ = ["UnfoldConvolutions"]

aten = torch.ops.aten


@dataclass(frozen=True)
class UnfoldConvolutions:
    """Joint graph × decisions ⇒ joint graph with an mm for each convolution's product that is rewritten."""

    name: ClassVar[str] = "unfold-convolutions"
    decisions: tuple[Decision, ...]

    def rewrite(self, joint: JointGraph) -> JointGraph:
        """Edit the graph in place; returns it with fresh facts where it was edited."""
        chosen = [decision for decision in self.decisions if CONVOLUTION in decision.gemm.op]
        if not chosen:
            return joint
        by_name = {node.name: node for node in joint.graph.nodes}
        products = [by_name[d.gemm.node] for d in self.decisions if d.gemm.role is Role.GRAD_WEIGHT]
        unfolder = _Unfolder(GraphEditor(joint, weight_readers(products)))
        # Where x is unfolded for g_w is a question to the graph as it is before the first edit.
        in_forward = {d.gemm.node for d in chosen if unfolder.keeps_columns(d, by_name[d.gemm.node])}
        for decision in chosen:
            node = by_name[decision.gemm.node]
            unfolder.express(decision.gemm.role, node, in_forward=node.name in in_forward)
        return JointGraph(joint.graph, joint.inputs)


@dataclass(frozen=True)
class _Unfolder:
    """Edits one graph."""

    editor: GraphEditor

    def keeps_columns(self, decision: Decision, node: fx.Node) -> bool:
        """The forward makes what is kept for this product, so that the columns are made there."""
        if not keeps_columns(decision.scheme, decision.gemm):
            return False
        return not self.editor.compresses_in_backward(Convolution.of(node.all_input_nodes[0]).x)

    def express(self, role: Role, node: fx.Node, *, in_forward: bool) -> None:
        """Turn a product into an mm of matrices."""
        self.editor.product = node.name
        if role is Role.FORWARD:
            self._forward(Convolution.of(node))
            return
        call = node.all_input_nodes[0]
        with self.editor.graph.inserting_before(node):
            if role is Role.GRAD_INPUT:
                self._grad_input(Convolution.of(call), node)
            else:
                self._grad_weight(Convolution.of(call), node, in_forward)
        self._leave_the_others(call)

    def _forward(self, convolution: Convolution) -> None:
        """y = columns wᵀ + b."""
        node, like = convolution.call, value(convolution.call)
        columns = self._columns(convolution, node, backward=False)
        with self.editor.graph.inserting_before(node):
            weight = self.editor.transposed(self._weight(convolution, node, backward=False), backward=False)
        bias = () if convolution.bias is None else (convolution.bias,)
        self._becomes(node, aten.addmm.default if bias else aten.mm.default, (*bias, columns, weight))
        result = functools.partial(windows.images, window=convolution.known_window)
        self._shown_as(node, like, result, (convolution.x,), backward=False)

    def _grad_input(self, convolution: Convolution, node: fx.Node) -> None:
        """fold(g_y w)."""
        like = value(node)
        rows, weight = self._rows(convolution, node), self._weight(convolution, node, backward=True)
        self._becomes(node, aten.mm.default, (rows, weight), convolution.call)
        folded = functools.partial(windows.fold, window=convolution.known_window)
        self._shown_as(node, like, folded, (convolution.x,), backward=True)

    def _grad_weight(self, convolution: Convolution, node: fx.Node, in_forward: bool) -> None:
        """g_yᵀ columns, and the sum of g_y over the tokens where it is wanted."""
        like = value(node)
        rows = self._rows(convolution, node)
        columns = self._columns(convolution, node, backward=not in_forward)
        self._becomes(node, aten.mm.default, (self.editor.transposed(rows, backward=True), columns), convolution.call)
        shaped = functools.partial(torch.reshape, shape=tuple(like.shape))
        self._shown_as(node, like, shaped, (), backward=True)
        self._sum(convolution, rows, node)

    def _rows(self, convolution: Convolution, node: fx.Node) -> fx.Node:
        gradient = convolution.gradient
        assert gradient is not None

        def build() -> fx.Node:
            return self.editor.inline(windows.rows, (gradient,), node, backward=True)

        found: fx.Node = self.editor.once(("rows", gradient), build)
        return found

    def _weight(self, convolution: Convolution, node: fx.Node, *, backward: bool) -> fx.Node:
        """[O, I·k]. A cast of the parameter stays on top, where the rules look for it.

        In the backward the view is another one: a copy, which channels_last needs, would be merged with the forward's
        copy and saved.
        """
        weight = convolution.weight
        cast = weight.target in CASTS and not weight.kwargs
        base = weight.all_input_nodes[0] if cast else weight

        def build() -> fx.Node:
            view = functools.partial(windows.weight_matrix, turned=backward)
            matrix = self.editor.inline(view, (base,), node, backward=backward)
            matrix = self._again(weight, matrix, backward) if cast else matrix
            matrix.meta[MATRIX] = weight.name
            return self.editor.transposed(matrix, backward=True) if backward else matrix

        found: fx.Node = self.editor.once(("weight", weight, backward), build)
        return found

    def _again(self, cast: fx.Node, operand: fx.Node, backward: bool) -> fx.Node:
        target: Any = cast.target
        return self.editor.call(target, (operand, *cast.args[1:]), cast, backward=backward)

    def _columns(self, convolution: Convolution, node: fx.Node, *, backward: bool) -> fx.Node:
        """x unfolded: behind x in the forward, in front of ``node`` in the backward."""
        x, window = convolution.x, convolution.known_window
        unfold = functools.partial(windows.unfold, window=window, channels_last=backward)
        like = x if convolution.gradient is not None else node  # a checkpointed forward makes them again

        def build() -> fx.Node:
            with self.editor.graph.inserting_before(node) if backward else self.editor.behind(x):
                made = self.editor.inline(unfold, (x,), like, backward=backward)
            made.meta[MATRIX] = (x.name, window)
            return made

        found: fx.Node = self.editor.once(("columns", x, window, backward), build)
        return found

    def _becomes(self, node: fx.Node, target: Any, arguments: tuple[fx.Node, ...], like: fx.Node | None = None) -> None:
        """Let a node compute something else under its name; ``like``: what it inherits the user's module from."""
        with self.editor.graph.inserting_before(node):
            made = self.editor.call(target, arguments, like or node, backward=False)
        node.target, node.args, node.kwargs = target, made.args, {}
        node.meta.update({key: entry for key, entry in made.meta.items() if key != "partitioner_tag"})
        self.editor.graph.erase_node(made)

    def _shown_as(
        self,
        node: fx.Node,
        like: torch.Tensor,
        function: Callable[..., torch.Tensor],
        others: tuple[fx.Node, ...],
        *,
        backward: bool,
    ) -> None:
        """Show whoever reads ``node`` its result in the form, and with the strides, of ``like``."""
        users = list(node.users)
        with self.editor.graph.inserting_before(node.next):
            shown = self.editor.inline(function, (node, *others), node, backward=backward)
            if not _same_layout(value(shown), like):
                laid_out = functools.partial(torch.clone, memory_format=_memory_format(like))
                shown = self.editor.inline(laid_out, (shown,), node, backward=backward)
        for user in users:
            user.replace_input_with(node, shown)

    def _sum(self, convolution: Convolution, rows: fx.Node, node: fx.Node) -> None:
        """g_b as the sum of the rows, which whoever reads them can add up: it stands behind the product."""
        gradient = convolution.gradient
        assert gradient is not None
        sums = [user for user in gradient.users if _sums_tokens(user)]
        sums += [own] if (own := gradients(convolution.call).get(BIAS)) is not None else []
        for total in [total for total in sums if all(node < user for user in total.users)]:
            with self.editor.graph.inserting_before(node.next):
                summed = self.editor.call(aten.sum.dim_IntList, (rows, [0]), total, backward=True)
            total.replace_all_uses_with(summed)
            self.editor.graph.erase_node(total)

    def _leave_the_others(self, call: fx.Node) -> None:
        """Narrow a call to the results that are still taken out of it; x is not read where g_w is not."""
        used = gradients(call)
        if not used:
            self.editor.graph.erase_node(call)
            return
        *arguments, wanted = call.args
        assert isinstance(wanted, list | tuple)
        mask = [bool(is_wanted) and number in used for number, is_wanted in enumerate(wanted)]
        if not mask[1]:
            arguments[1] = self._unwritten(arguments[0], arguments[1], call)
        call.args = (*arguments, mask)
        call.meta["val"] = tuple(v if keep else None for v, keep in zip(call.meta["val"], mask, strict=True))

    def _unwritten(self, gradient: Any, x: Any, call: fx.Node) -> Any:
        """A tensor of x's layout that nobody reads: x itself would have to live until the backward."""
        if x.target is aten.new_empty_strided.default:
            return x
        with self.editor.graph.inserting_before(call):
            return self.editor.inline(_laid_out_as, (gradient, x), call, backward=True)


def _laid_out_as(g_y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return g_y.new_empty_strided(x.shape, x.stride())


def _sums_tokens(node: fx.Node) -> bool:
    """A sum of images over all axes but the channels', as torch writes the gradient of a bias on some devices."""
    if node.target is not aten.sum.dim_IntList or value(node).dim() != 1:
        return False
    axes = value(node.all_input_nodes[0]).dim()
    given = compat.arguments(node)
    return sorted(axis % axes for axis in given["dim"]) == [0, *range(2, axes)] and given["dtype"] is None


def _same_layout(some: torch.Tensor, other: torch.Tensor) -> bool:
    """The strides agree along every axis that has any."""
    axes = zip(some.shape, some.stride(), other.stride(), strict=True)
    known = compat.statically_known_true
    return all(known(extent == 1) or known(a == b) for extent, a, b in axes)


def _memory_format(tensor: torch.Tensor) -> torch.memory_format:
    """Contiguous, or channels last where those have the smallest stride."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = compat.statically_known_true(tensor.stride(1) == 1) if tensor.dim() > 1 else False
    return formats.get(tensor.dim(), torch.contiguous_format) if last else torch.contiguous_format
