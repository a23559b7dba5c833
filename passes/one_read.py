"""What one read of each incoming gradient would cost, foreseen on the joint graph, before anything is decided.

g_y is read along its rows for g_x and along its tokens for g_w. Where both take scales in groups, one kernel can make
both forms, and evaluate the producers of g_y on the way; products in groups are slower in return. This file states the
bytes, with the same rules that later find the sites (``find_producers``); the choice weighs them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.fx as fx

from hadamard_fx.cost_model.device_profile import DeviceProfile
from hadamard_fx.cost_model.work import launch, launch_seconds
from hadamard_fx.kernels import quantize_both
from hadamard_fx.plan import Gemm, Role
from hadamard_fx.scheme import Hadamard, LowRank

from .candidates import Candidate
from .chains import is_extern, kind_of, readers, row_views
from .convolutions import CONVOLUTION
from .find_gemms import operands
from .find_producers import grow_all
from .joint_graph import JointGraph, strip_transpose, value

__all__ = ["FindOneReads", "OneRead"]


@dataclass(frozen=True)
class OneRead:
    """One incoming gradient, and the bytes of reading it for all its forms at once.

    Attributes:
        tensor: g_y's node.
        rows, tokens: nodes of the products g_x and g_w that read it, ``""`` where there is none.
        length, channels: of g_y as [L, O].
        stored: bytes of g_y, which Inductor writes where nobody evaluates its producers.
        merged: bytes that one kernel reads behind that; None where it cannot.
        fused: bytes that one kernel moves instead, where it evaluates the producers; None where it cannot.
        operations: of the producers, for each element.
    """

    tensor: str
    rows: str
    tokens: str
    length: int
    channels: int
    stored: int
    merged: int | None
    fused: int | None
    operations: int

    def seconds(self, rows: Hadamard | None, tokens: LowRank | None, profile: DeviceProfile) -> float | None:
        """Of the kernel that makes the wanted forms by one read, against a g_y that is written anyway; None where
        there is none.

        Args:
            rows, tokens: the schemes of the forms, in groups; None: not wanted.
        """
        ways = [] if self.fused is None else [(self.fused - self.stored, self.fused, self.operations)]
        if self.merged is not None and rows is not None and tokens is not None:
            ways.append((self.merged, self.merged, 0))
        if not ways:
            return None
        moved, read, operations = min(ways)
        settings: dict[str, Any] = {
            "rows": (rows.order, rows.bits, rows.group) if rows else (),
            "tokens": (tokens.order, tokens.rank, tokens.bits, tokens.group) if tokens else (),
        }
        both = launch(quantize_both.traffic, self.length, self.channels, read, operations, **settings)
        return launch_seconds(both, profile) - (read - moved) / profile.bandwidth


@dataclass
class _Gradient(Candidate):
    """``Candidate`` whose readers are the products themselves."""

    extents: tuple[int, int] = (0, 0)
    handed_over: frozenset[fx.Node] = frozenset()
    """Nodes of the forward, where the chain ends: what the backward reads of them lies in memory."""
    kinds: ClassVar[dict[Role, str]] = {Role.GRAD_INPUT: "rows", Role.GRAD_WEIGHT: "tokens"}

    @property
    def shape(self) -> tuple[int, int]:
        return self.extents

    def grow(self, ends: frozenset[fx.Node]) -> None:
        super().grow(ends | self.handed_over)
        self.others = tuple(other for other in self.others if not self._leads_to_products(other))

    def _leads_to_products(self, node: fx.Node) -> bool:
        return strip_transpose(node)[0] is not node and all(user in self.calls for user in readers(node))


@dataclass(frozen=True)
class FindOneReads:
    """Joint graph × products ⇒ what one read of each gradient would cost.

    Attributes:
        devices: types of the devices that have the kernel.
    """

    name: ClassVar[str] = "find-one-reads"
    devices: frozenset[str] = frozenset({"cuda"})

    def analyse(self, joint: JointGraph, gemms: Iterable[Gemm]) -> tuple[OneRead, ...]:
        """In the order of the graph."""
        found = self._gradients(joint, gemms)
        forward = frozenset(node for node in joint.graph.nodes if node not in joint.tangent_closure)
        for gradient in found:
            gradient.handed_over = forward
        grow_all(found)
        return tuple(_one_read(gradient, found, forward) for gradient in found)

    def _gradients(self, joint: JointGraph, gemms: Iterable[Gemm]) -> list[_Gradient]:
        by_name = {node.name: node for node in joint.graph.nodes}
        found: dict[fx.Node, _Gradient] = {}
        for gemm in gemms:
            form = _Gradient.kinds.get(gemm.role)
            if CONVOLUTION in gemm.op:  # the rows of its g_y are made by the rewrite
                continue
            if form is None or gemm.device not in self.devices or any(size.symbol for size in (gemm.M, gemm.N, gemm.K)):
                continue
            node = by_name[gemm.node]
            view = strip_transpose(operands(node)[0 if gemm.gradient == "left" else 1])[0]
            y = row_views(view)
            shape = (gemm.gradient_extent, gemm.K.hint) if form == "rows" else (gemm.K.hint, gemm.gradient_extent)
            gradient = found.setdefault(y, _Gradient(y, extents=shape))
            if getattr(gradient, form) is None and gradient.extents == shape:
                setattr(gradient, form, node)
        return list(found.values())


def _one_read(gradient: _Gradient, found: list[_Gradient], forward: frozenset[fx.Node]) -> OneRead:
    contiguous = value(gradient.y).is_contiguous()
    made = gradient.prologue()
    rows, tokens = ("" if node is None else node.name for node in (gradient.rows, gradient.tokens))
    fused = None if made is None or (gradient.others and not contiguous) else _fused(gradient, found, forward)
    merged = gradient.bytes if contiguous else None
    operations = 0 if made is None else made[0].operations
    return OneRead(gradient.y.name, rows, tokens, *gradient.shape, gradient.bytes, merged, fused, operations)


def _fused(gradient: _Gradient, found: list[_Gradient], forward: frozenset[fx.Node]) -> int:
    total = 0.0
    for leaf in gradient.chain.leaves:
        sharing = sum(leaf in other.chain.leaves for other in found)
        if leaf not in forward:
            total += gradient.chain.extra_bytes(leaf, sharing)
        elif kind_of(leaf, gradient.shape) == "tile":
            inside = gradient.chain.inside
            others = any(user not in inside and user not in forward for user in readers(row_views(leaf)))
            total += value(leaf).numel() * value(leaf).dtype.itemsize * (1 if others else 1 - 1 / sharing)
    if gradient.others:
        total += gradient.bytes * (1 + any(not is_extern(other) for other in gradient.others))
    return int(total)
