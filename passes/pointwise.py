"""Pointwise ops of a graph as steps of a prologue.

The table says which aten op is which operation of ``kernels.prologue``. What needs more than a name (a factor
``alpha``, a constant exponent, a cast) is spelled out below it. An op that is in neither is not pointwise here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.fx as fx

from hadamard_fx import compat
from hadamard_fx.kernels.prologue import OPS, Operand, Prologue, Step

from .joint_graph import CASTS, RESHAPES, value

__all__ = ["DTYPES", "INTEGERS", "Builder", "is_pointwise", "keeps_elements"]

aten, prims = torch.ops.aten, torch.ops.prims

DTYPES = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.bool})
"""Of the values that a prologue reads and computes."""

INTEGERS = frozenset({torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8})
"""Of values that a prologue only compares: the classes of a cross-entropy with the number of a column."""

_EXACT = 2**24
"""Integers below are float32s, and a larger one is rounded to none of them: comparing with these gives the same."""

_NAMES: dict[str, str] = {
    **{name: name for name in ("mul", "neg", "abs", "exp", "log", "sqrt", "rsqrt", "reciprocal", "erf", "tanh")},
    **{name: name for name in ("sigmoid", "sin", "cos", "relu", "maximum", "minimum", "where", "div")},
    **{name: name for name in ("eq", "ne", "lt", "le", "gt", "ge")},
    **{f"logical_{name}": name for name in ("and", "or", "not")},
    **{f"bitwise_{name}": name for name in ("and", "or", "not")},
    "clamp_min": "maximum",
    "clamp_max": "minimum",
}
_OVERLOADS = ("default", "Tensor", "Scalar", "self", "ScalarSelf", "ScalarOther", "Tensor_Scalar")

TABLE: dict[Any, str] = {
    getattr(getattr(aten, name), overload): op
    for name, op in _NAMES.items()
    for overload in _OVERLOADS
    if hasattr(getattr(aten, name), overload)
}
"""aten op -> operation, where the operands are the same in number and order."""

_VIEWS = RESHAPES | {aten.expand.default, aten.unsqueeze.default, aten.squeeze.dims, aten.detach.default}
_CONSTANTS = frozenset({aten.full.default, aten.scalar_tensor.default})
_EXPONENTS = (0.5, 1, 2, 3, 4, -0.5, -1)
_COMPARISONS = frozenset({"eq", "ne", "lt", "le", "gt", "ge"})


def is_pointwise(node: fx.Node) -> bool:
    """A prologue can compute ``node`` from its operands."""
    result = node.meta.get("val")
    if node.op != "call_function" or not isinstance(result, torch.Tensor):
        return False
    if _compares_integers(node) or (result.dtype in INTEGERS and node.target in _VIEWS):
        return node.target not in _VIEWS or keeps_elements(node)
    operands = node.all_input_nodes
    if result.dtype not in DTYPES or any(
        not isinstance(o.meta.get("val"), torch.Tensor) or value(o).dtype not in DTYPES for o in operands
    ):
        return False
    if node.target in _CONSTANTS:
        return isinstance(_constant_value(node), int | float)
    if not operands:
        return False
    if node.target in _VIEWS:
        return keeps_elements(node)
    if node.target in TABLE:
        op = TABLE[node.target]
        return not node.kwargs and (result.dtype is not torch.bool or op == "where" or OPS[op].truth)
    return node.target in _SPECIAL and _legal(node)


def _compares_integers(node: fx.Node) -> bool:
    """A comparison of integers that comes out the same in float32."""
    if TABLE.get(node.target) not in _COMPARISONS or node.kwargs:
        return False
    operands = node.all_input_nodes
    integers = all(isinstance(o.meta.get("val"), torch.Tensor) and value(o).dtype in INTEGERS for o in operands)
    return integers and any(_is_exact(operand) for operand in node.args)


def _is_exact(operand: Any) -> bool:
    """A number that float32 has, or the numbers of that many columns."""
    while isinstance(operand, fx.Node) and operand.target in _VIEWS:
        operand = operand.args[0]
    if not isinstance(operand, fx.Node):
        return isinstance(operand, int) and abs(operand) < _EXACT
    if operand.target is not prims.iota.default:
        return False
    length, start, step = operand.args[0], operand.kwargs.get("start"), operand.kwargs.get("step")
    if not (isinstance(length, int) and isinstance(start, int) and isinstance(step, int)):
        return False
    return max(abs(start), abs(start + step * length)) <= _EXACT


def keeps_elements(node: fx.Node) -> bool:
    """A view that keeps the order of the elements and the last axis, or that only repeats them along other axes."""
    if node.target not in _VIEWS:
        return False
    before, after = value(node.all_input_nodes[0]), value(node)
    if node.target is aten.expand.default:
        return before.dim() > 0
    return before.shape[-1:] == after.shape[-1:] and before.numel() == after.numel()


def _constant_value(node: fx.Node) -> Any:
    return node.args[1] if node.target is aten.full.default else node.args[0]


class Builder:
    """Writes a prologue step by step; equal steps are written once."""

    def __init__(self) -> None:
        self.leaves: dict[fx.Node, str] = {}
        self.kinds: list[str] = []
        self.steps: dict[str, tuple[Step, str]] = {}
        self._made: dict[fx.Node, Operand] = {}

    def leaf(self, node: fx.Node, kind: str) -> None:
        """``node`` is an input of that kind."""
        if node not in self._made:
            self._made[node] = self.leaves[node] = f"x{len(self.kinds)}"
            self.kinds.append(kind)

    def step(self, op: str, *operands: Operand) -> Operand:
        """The result of an operation; of constants alone it is a constant."""
        if not any(isinstance(operand, str) for operand in operands):
            folded: Operand = OPS[op].torch(*map(_float32, operands)).item()
            return folded
        step = Step(op, operands)
        text = json.dumps([op, *step.operands])  # by text: True is not 1.0, nor 0.0 -0.0
        return self.steps.setdefault(text, (step, f"s{len(self.steps)}"))[1]

    def add(self, node: fx.Node) -> None:
        """``node``, whose operands are there already."""
        if node.target in _CONSTANTS:
            constant = _constant_value(node)
            self._made[node] = bool(constant) if value(node).dtype is torch.bool else float(constant)
        elif node.target in _VIEWS:
            self._made[node] = self._made[node.all_input_nodes[0]]
        elif node.target in TABLE:
            self._made[node] = self.step(TABLE[node.target], *self._operands(node, TABLE[node.target]))
        else:
            self._made[node] = _SPECIAL[node.target](self, node)

    def _operands(self, node: fx.Node, op: str) -> list[Operand]:
        """As the operation wants them: truth values for logic, numbers for everything else."""
        logic = op in ("and", "or", "not")
        wanted = [logic] * len(node.args)
        if op == "where":
            wanted = [True, *([value(node).dtype is torch.bool] * 2)]
        return [self.operand(arg, truth) for arg, truth in zip(node.args, wanted, strict=True)]

    def operand(self, arg: Any, truth: bool = False) -> Operand:
        """An operand, converted where it is a number and a truth value is wanted, or the other way round."""
        if not isinstance(arg, fx.Node):
            return bool(arg) if truth else float(arg)
        made = self._made[arg]
        if not isinstance(made, str):
            return bool(made) if truth else float(made)
        if (value(arg).dtype is torch.bool) == truth:
            return made
        return self.step("bool" if truth else "float", made)

    def prologue(self, result: fx.Node) -> Prologue | None:
        """The function that gives ``result``; None where it reads no tile."""
        made = self._made[result]
        if not isinstance(made, str) or "tile" not in self.kinds:
            return None
        return Prologue(tuple(self.kinds), tuple(step for step, _ in self.steps.values()), made)


def _float32(constant: Operand) -> torch.Tensor:
    return torch.tensor(constant, dtype=torch.bool if isinstance(constant, bool) else torch.float32)


def _cast(builder: Builder, node: fx.Node) -> Operand:
    """Between float types it is nothing: all of them are computed in float32."""
    return builder.operand(node.args[0], value(node).dtype is torch.bool)


def _sum(builder: Builder, node: fx.Node) -> Operand:
    left, right = (builder.operand(arg) for arg in node.args[:2])
    alpha = float(node.kwargs.get("alpha", 1))  # type: ignore[arg-type]
    op = "add" if node.target in (aten.add.Tensor, aten.add.Scalar) else "sub"
    return builder.step(op, left, right if alpha == 1 else builder.step("mul", right, alpha))


def _power(builder: Builder, node: fx.Node) -> Operand:
    base, exponent = builder.operand(node.args[0]), node.args[1]
    if exponent in (0.5, -0.5, -1):
        return builder.step({0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}[exponent], base)  # type: ignore[index]
    square = builder.step("mul", base, base)
    if exponent == 1:
        return base
    return {2: square, 3: builder.step("mul", square, base), 4: builder.step("mul", square, square)}[exponent]  # type: ignore[index]


def _clamp(builder: Builder, node: fx.Node) -> Operand:
    bounds = compat.arguments(node)
    result = builder.operand(node.args[0])
    for op, bound in (("maximum", bounds["min"]), ("minimum", bounds["max"])):
        if bound is not None:
            result = builder.step(op, result, builder.operand(bound))
    return result


_SPECIAL: dict[Any, Callable[[Builder, fx.Node], Operand]] = {
    **dict.fromkeys(CASTS, _cast),
    **dict.fromkeys((aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar), _sum),
    aten.pow.Tensor_Scalar: _power,
    aten.clamp.default: _clamp,
    aten.square.default: lambda builder, node: builder.step("mul", *[builder.operand(node.args[0])] * 2),
}


def _legal(node: fx.Node) -> bool:
    """The arguments of one of ``_SPECIAL`` are among those that are spelled out."""
    if node.target in CASTS:
        before, after = value(node.all_input_nodes[0]).dtype, value(node).dtype
        loses = after.is_floating_point and before.is_floating_point and after.itemsize < before.itemsize
        return set(node.kwargs) <= {"dtype"} and not (loses and compat.keeps_casts())
    if value(node).dtype is torch.bool:
        return False
    if len(node.args) > 2 and node.target is not aten.clamp.default:
        return False
    return node.args[1] in _EXPONENTS if node.target is aten.pow.Tensor_Scalar else set(node.kwargs) <= {"alpha"}
