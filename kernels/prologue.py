"""Prologue: the pointwise chain that makes a tensor, as a value that a kernel can evaluate while it reads the leaves.

g_y is often a pointwise function of tensors that lie in memory anyhow: behind a GELU it is g · GELU'(x), g the result
of a product and x the saved pre-activation. A kernel that evaluates it on the way in spares one write and every read.

A prologue is in single-assignment form: each step names an operation of ``OPS`` and its operands, which are inputs
(``"x0"``), earlier steps (``"s0"``) or constants. It knows no dtypes: values are float32, or bool where they are
truth values. A cast between float types is no step, just as Inductor leaves it out between fused operations; what the
result is rounded to, the caller says. As text it is the argument of an operator, ``hadamard::quantize_both``.
"""

from __future__ import annotations

import functools
import json
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor

__all__ = ["KINDS", "OPS", "Op", "Operand", "Prologue", "Step"]

Operand: TypeAlias = str | float | bool
"""``"x0"``: an input; ``"s0"``: an earlier step; a number or a truth value: a constant."""

KINDS = ("tile", "row", "column", "scalar")
"""What an input is to a result [L, C]: [L, C]; [L, 1], one value per token; [1, C], one per channel; 0-d."""


@dataclass(frozen=True)
class Op:
    """One pointwise operation.

    Attributes:
        arity: number of operands.
        torch: the operation on tensors or Python numbers, at least one of them a tensor.
        triton: the expression, with ``{0}``, ``{1}``, … for the operands.
        operations: what one evaluation costs, in additions.
        truth: the result is a truth value.
    """

    arity: int
    torch: Callable[..., Any]
    triton: str
    operations: int = 1
    truth: bool = False


def _to_float(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _to_bool(x: Tensor) -> Tensor:
    return x != 0


def _tensors(function: Callable[..., Any], *operands: Any) -> Any:
    """``function`` of tensors, where torch's own takes no Python numbers or truth values."""
    example = next(x for x in operands if isinstance(x, Tensor))
    dtypes = [x.dtype for x in operands if isinstance(x, Tensor) and x.is_floating_point()]
    number = dtypes[0] if dtypes else torch.float32

    def tensor(x: Any) -> Tensor:
        return (
            x if isinstance(x, Tensor) else example.new_tensor(x, dtype=torch.bool if isinstance(x, bool) else number)
        )

    return function(*map(tensor, operands))


_ALL = ", propagate_nan=tl.PropagateNan.ALL)"
# Without libdevice, which the interpreter lacks. Near 0 the formula by exp would lose all digits.
_TANH = (
    "tl.where(tl.abs({0}) < 0.04, {0} - {0} * {0} * {0} * (0.3333333333 - {0} * {0} * 0.1333333333), "
    "1.0 - 2.0 / (tl.exp({0} + {0}) + 1.0))"
)

OPS: dict[str, Op] = {
    "add": Op(2, operator.add, "{0} + {1}"),
    "sub": Op(2, operator.sub, "{0} - {1}"),
    "mul": Op(2, operator.mul, "{0} * {1}"),
    "div": Op(2, operator.truediv, "{0} / {1}", 8),
    "neg": Op(1, torch.neg, "-{0}"),
    "abs": Op(1, torch.abs, "tl.abs({0})"),
    "exp": Op(1, torch.exp, "tl.exp({0})", 4),
    "log": Op(1, torch.log, "tl.log({0})", 4),
    "sqrt": Op(1, torch.sqrt, "tl.sqrt({0})", 4),
    "rsqrt": Op(1, torch.rsqrt, "tl.rsqrt({0})", 4),
    "reciprocal": Op(1, torch.reciprocal, "1.0 / {0}", 8),
    "erf": Op(1, torch.erf, "tl.erf({0})", 20),
    "tanh": Op(1, torch.tanh, _TANH, 20),
    "sigmoid": Op(1, torch.sigmoid, "tl.sigmoid({0})", 12),
    "sin": Op(1, torch.sin, "tl.sin({0})", 20),
    "cos": Op(1, torch.cos, "tl.cos({0})", 20),
    "relu": Op(1, torch.relu, "tl.maximum({0}, 0.0" + _ALL),
    "maximum": Op(2, functools.partial(_tensors, torch.maximum), "tl.maximum({0}, {1}" + _ALL),
    "minimum": Op(2, functools.partial(_tensors, torch.minimum), "tl.minimum({0}, {1}" + _ALL),
    "where": Op(3, functools.partial(_tensors, torch.where), "tl.where({0}, {1}, {2})"),
    "eq": Op(2, operator.eq, "{0} == {1}", truth=True),
    "ne": Op(2, operator.ne, "{0} != {1}", truth=True),
    "lt": Op(2, operator.lt, "{0} < {1}", truth=True),
    "le": Op(2, operator.le, "{0} <= {1}", truth=True),
    "gt": Op(2, operator.gt, "{0} > {1}", truth=True),
    "ge": Op(2, operator.ge, "{0} >= {1}", truth=True),
    "and": Op(2, functools.partial(_tensors, torch.logical_and), "{0} & {1}", truth=True),
    "or": Op(2, functools.partial(_tensors, torch.logical_or), "{0} | {1}", truth=True),
    "not": Op(1, torch.logical_not, "{0} == 0", truth=True),
    "float": Op(1, _to_float, "{0}.to(tl.float32)"),
    "bool": Op(1, _to_bool, "{0} != 0", truth=True),
}
"""Every operation that a kernel can evaluate, by name. What is not here stays outside of a prologue."""


@dataclass(frozen=True)
class Step:
    """One operation; ``operands`` name inputs, earlier steps or constants."""

    op: str
    operands: tuple[Operand, ...]

    def __post_init__(self) -> None:
        numbers = (float(o) if isinstance(o, int) and not isinstance(o, bool) else o for o in self.operands)
        object.__setattr__(self, "operands", tuple(numbers))  # one text for 1 and 1.0


@dataclass(frozen=True)
class Prologue:
    """A pointwise function of its inputs.

    Attributes:
        inputs: the kind of each input, one of ``KINDS``; at least one is a tile.
        steps: in order of evaluation.
        result: what comes out, an input or a step.

    Raises:
        ValueError: an unknown kind or operation, a wrong number of operands, or an operand that does not exist yet.
    """

    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    result: str

    def __post_init__(self) -> None:
        if "tile" not in self.inputs or any(kind not in KINDS for kind in self.inputs):
            raise ValueError(f"inputs must be of {', '.join(KINDS)}, a tile among them, not {self.inputs}")
        known = {f"x{index}" for index in range(len(self.inputs))}
        for index, step in enumerate(self.steps):
            if step.op not in OPS or len(step.operands) != OPS[step.op].arity:
                raise ValueError(f"step {index}: {step.op!r} of {len(step.operands)} operands is no known operation")
            named = {operand for operand in step.operands if isinstance(operand, str)}
            if not named or not named <= known:
                raise ValueError(f"step {index}: {step.op!r} reads {step.operands}, known are {sorted(known)}")
            known.add(f"s{index}")
        if self.result not in known:
            raise ValueError(f"the result {self.result!r} is neither an input nor a step")

    @classmethod
    def identity(cls) -> Self:
        """The tensor itself."""
        return cls(("tile",), (), "x0")

    @property
    def operations(self) -> int:
        """Additions, or what takes as long, for one element of the result."""
        return sum(OPS[step.op].operations for step in self.steps)

    def to_text(self) -> str:
        """Canonical: equal prologues have equal texts."""
        steps = [[step.op, *step.operands] for step in self.steps]
        return json.dumps([list(self.inputs), steps, self.result], separators=(",", ":"))

    @classmethod
    def from_text(cls, text: str) -> Self:
        """What ``to_text`` wrote.

        Raises:
            ValueError: it is none of that.
        """
        try:
            inputs, steps, result = json.loads(text)
            return cls(tuple(inputs), tuple(Step(op, tuple(operands)) for op, *operands in steps), result)
        except (TypeError, ValueError) as error:
            raise ValueError(f"no prologue: {error}; the text is {text!r}") from None

    def shape(self, inputs: Sequence[Tensor]) -> tuple[int, int]:
        """[L, C] of the result.

        Raises:
            ValueError: the inputs are not of the shapes that their kinds promise.
        """
        if len(inputs) != len(self.inputs):
            raise ValueError(f"{len(inputs)} inputs for a prologue of {len(self.inputs)}")
        rows, columns = inputs[self.inputs.index("tile")].shape
        expected: dict[str, tuple[int, ...]] = {
            "tile": (rows, columns),
            "row": (rows, 1),
            "column": (1, columns),
            "scalar": (),
        }
        for index, (kind, tensor) in enumerate(zip(self.inputs, inputs, strict=True)):
            if tuple(tensor.shape) != expected[kind]:
                raise ValueError(f"input {index} is a {kind}, {list(expected[kind])}, not {list(tensor.shape)}")
        return rows, columns

    def evaluate(self, inputs: Sequence[Tensor], dtype: torch.dtype, precision: torch.dtype = torch.float32) -> Tensor:
        """The result [L, C] in ``dtype``, a tensor of its own.

        Args:
            inputs: of the shapes that their kinds say; floating point, bool, or integers to be compared.
            dtype: what the result is rounded to.
            precision: what everything before is computed in.
        """
        shape = self.shape(inputs)
        values: dict[str, Any] = {
            f"x{index}": x if x.dtype is torch.bool else x.to(precision) for index, x in enumerate(inputs)
        }
        for index, step in enumerate(self.steps):
            operands = [values[operand] if isinstance(operand, str) else operand for operand in step.operands]
            values[f"s{index}"] = OPS[step.op].torch(*operands)
        result: Tensor = values[self.result].to(dtype)
        return result.expand(shape).clone(memory_format=torch.contiguous_format)

    def triton_body(
        self,
        names: Sequence[str],
        result: str = "y",
        prefix: str = "s",
        expression: Callable[[int, Step], str] = lambda index, step: OPS[step.op].triton,
    ) -> str:
        """Triton statements, one a line, that compute the variable ``result``.

        Args:
            names: variables that hold the inputs, loaded as float32, or int1 where the input is bool, of shapes that
                broadcast against each other. The result has the shape that they broadcast to in the steps.
            result: the variable to be assigned.
            prefix: of the steps' variables.
            expression: of a step, by its number, with ``{0}``, ``{1}``, … for the operands.
        """
        variables = {f"x{index}": name for index, name in enumerate(names)}
        lines = []
        for index, step in enumerate(self.steps):
            operands = [variables[o] if isinstance(o, str) else _constant(o) for o in step.operands]
            variables[f"s{index}"] = f"{prefix}{index}"
            lines.append(f"{prefix}{index} = {expression(index, step).format(*operands)}")
        return "\n".join([*lines, f"{result} = {variables[self.result]}"])


def _constant(value: float | bool) -> str:
    """A Python number as Triton source: float32 for numbers."""
    if isinstance(value, bool):
        return str(value)
    number = float(value)
    return f"({number!r})" if math.isfinite(number) else f'float("{number}")'
