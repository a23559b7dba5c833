"""A convolution of the graph, seen as three products of matrices (HOT, section 3: GEMMs over im2col).

With L = batch · positions, and x [L, I·k] unfolded under the window, y = x wᵀ, g_x = g_y w (folded back) and
g_w = g_yᵀ x as for a linear layer. The forward is one call of ``aten.convolution``; both gradients are results of one
call of ``aten.convolution_backward``, each its own product, named after the node that takes it out.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.fx as fx

from hadamard_fx import compat
from hadamard_fx.plan import Gemm, Role, Size
from hadamard_fx.window import Window

from .joint_graph import size_of, source_line, value

__all__ = [
    "BACKWARD",
    "BIAS",
    "CONVOLUTION",
    "FORWARD",
    "GRADIENTS",
    "Convolution",
    "describe",
    "gradients",
    "is_convolution",
]

aten = torch.ops.aten

FORWARD, BACKWARD = aten.convolution.default, aten.convolution_backward.default

CONVOLUTION = "convolution"
"""``Gemm.op`` of one that can be rewritten; others say what they are."""

GRADIENTS = {0: Role.GRAD_INPUT, 1: Role.GRAD_WEIGHT}
"""Results of the backward that are products; the third is the gradient of the bias, a sum."""

BIAS = 2

Extent = int | torch.SymInt


def is_convolution(node: fx.Node) -> bool:
    """A call of the forward or of the backward."""
    return node.target is FORWARD or node.target is BACKWARD


def gradients(call: fx.Node) -> dict[int, fx.Node]:
    """The nodes that take the results out of a call of the backward, by their number; the first one of each."""
    found: dict[int, fx.Node] = {}
    for user in call.users:
        if user.target is operator.getitem and isinstance(user.args[1], int):
            found.setdefault(user.args[1], user)
    return found


@dataclass(frozen=True)
class Convolution:
    """A call of the forward or of the backward.

    Attributes:
        call: the node.
        x, weight: [batch, I, *extents] and [O, I, *kernel]; transposed ones have [I, O, *kernel].
        gradient: g_y, None in the forward.
        bias: its node; None in the backward and where there is none.
        window: None where a size of it is not known.
        op: ``CONVOLUTION``, or what keeps it from being one product.
    """

    call: fx.Node
    x: fx.Node
    weight: fx.Node
    gradient: fx.Node | None
    bias: fx.Node | None
    window: Window | None
    op: str

    @classmethod
    def of(cls, call: fx.Node) -> Self:
        """Of a call of either operator."""
        given = compat.arguments(call)
        x, weight = given["input"], given["weight"]
        *_, window = sizes = [tuple(value(weight).shape[2:]), given["stride"], given["padding"], given["dilation"]]
        known = all(isinstance(number, int) for size in sizes for number in size)
        window = Window(*(tuple(size) for size in sizes)) if known else None
        op = _kind(given, value(x)) if known else "convolution of symbolic window"
        return cls(call, x, weight, given.get("grad_output"), given.get("bias"), window, op)

    @property
    def transposed(self) -> bool:
        return bool(compat.arguments(self.call)["transposed"])

    @property
    def known_window(self) -> Window:
        assert self.window is not None, f"{self.op} has no window"
        return self.window

    @property
    def sequence(self) -> int:
        """Tokens of one image, 0 where their number varies."""
        positions = value(self.x if self.transposed else self.gradient or self.call).shape[2:]
        return math.prod(positions) if all(isinstance(extent, int) for extent in positions) else 0

    def sizes(self, of: Role) -> tuple[Extent, Extent, Extent]:
        """(M, N, K) of one of the products; groups leave K, or N, what it is in one group."""
        batch, _, *positions = value(self.x if self.transposed else self.gradient or self.call).shape
        rows, *inner = value(self.weight).shape
        tokens, columns = math.prod(positions, start=batch), math.prod(inner)
        products: dict[Role, tuple[Extent, Extent, Extent]] = {
            Role.GRAD_INPUT: (tokens, columns, rows),
            Role.GRAD_WEIGHT: (rows, columns, tokens),
        }
        forward: tuple[Extent, Extent, Extent] = (tokens, rows, columns)
        if self.transposed:
            forward, products[Role.GRAD_INPUT] = products[Role.GRAD_INPUT], forward
        return products.get(of, forward)

    def products(self) -> Iterator[tuple[fx.Node, Role]]:
        """Of a call of the backward: the nodes of its products, with the role that each would have in a layer."""
        wanted = compat.arguments(self.call)["output_mask"]
        for number, node in sorted(gradients(self.call).items()):
            if number in GRADIENTS and wanted[number]:
                yield node, GRADIENTS[number]


def describe(convolution: Convolution, node: fx.Node, role: Role, layer: str, weight: str, frozen: bool) -> Gemm:
    """One product of a convolution.

    Args:
        node: the call of a forward, or what takes a gradient out of the call of a backward.
        role: in the layer, or that it has none.
        layer, weight, frozen: as in ``Gemm``.
    """
    forward = convolution.gradient is None
    of = Role.FORWARD if forward else GRADIENTS[node.args[1]]  # type: ignore[index]
    m, n, k = convolution.sizes(of)
    left = convolution.gradient or convolution.x
    right = convolution.x if of is Role.GRAD_WEIGHT else convolution.weight
    return Gemm(
        node=node.name,
        role=role,
        layer=layer,
        M=size_of(m),
        N=size_of(n),
        K=size_of(k),
        dtype=str(value(convolution.x).dtype).removeprefix("torch."),
        device=value(convolution.x).device.type,
        left=left.name,
        right=right.name,
        op=convolution.op,
        gradient="" if forward else "left",
        weight=weight,
        frozen=frozen,
        source=source_line(convolution.call),
        window=None if convolution.transposed else convolution.window,
        image=Size(0) if convolution.transposed else size_of(math.prod(value(convolution.x).shape)),
    )


def _kind(given: dict[str, Any], x: torch.Tensor) -> str:
    if given["transposed"]:
        return "transposed convolution"
    if given["groups"] == 1:
        return CONVOLUTION
    return "depthwise convolution" if given["groups"] == x.shape[1] else "grouped convolution"
