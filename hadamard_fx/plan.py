"""The words that everything else speaks: Gemm, Scheme, Cost, Decision, Plan.

All of them are frozen values with a JSON form in both directions and a stable hash. A value flows one way:
the graph gives ``Gemm``s, prices give ``Cost``s, the choice gives ``Decision``s, a ``Plan`` holds them all, the rewrite
reads it and the report shows it. This module imports nothing of the project and nothing of torch.

Notation (HOT, arXiv 2503.21261): x [L, I] tokens x in, w [O, I], y = x wᵀ, g_y = d loss / d y.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Self

from .scheme import Exact, Hadamard, LowRank, Scheme
from .window import Window

__all__ = [
    "Candidate",
    "Cost",
    "Decision",
    "Exact",
    "Gemm",
    "Hadamard",
    "LowRank",
    "Plan",
    "Role",
    "Scheme",
    "Size",
]


class Role(enum.StrEnum):
    """What a matrix product computes for its layer."""

    FORWARD = "forward"
    """y = x wᵀ, contracted along I."""
    GRAD_INPUT = "grad_input"
    """g_x = g_y w, contracted along O."""
    GRAD_WEIGHT = "grad_weight"
    """g_w = g_yᵀ x, contracted along the tokens L."""
    ACTIVATION = "activation"
    """A product without a parameter (attention), or a gradient of one."""
    PARAMETERS = "parameters"
    """A product of parameters and buffers only (a merged adapter), or a gradient of one: no axis of it holds tokens."""


@dataclass(frozen=True)
class Size:
    """One extent of a product: a number, and the expression it stands for when the shape is dynamic."""

    hint: int
    symbol: str = ""

    def __str__(self) -> str:
        return f"{self.symbol}≈{self.hint}" if self.symbol else str(self.hint)


@dataclass(frozen=True)
class Gemm:
    """One matrix product of the joint graph: ``out[M, N] = left[M, K] @ right[K, N]``, ``batch`` times.

    Attributes:
        node: name of the fx node in the joint graph; unique within a plan.
        role: what the product computes.
        layer: the module path in the user's model, ``"blocks.0.mlp.fc1"``.
        left, right: names of the operand nodes, stripped of transposes.
        op: ``"mm"``, ``"addmm"``, ``"bmm"`` or ``"baddbmm"``; ``"addmm with factors"`` where alpha or beta is given;
            ``"convolution"``, ``"grouped convolution"`` and so on, with the sizes of its unfolded form.
        gradient: which operand depends on the incoming gradient, ``"left"``, ``"right"``, or ``""`` in the forward.
        dtype: of the operands, ``"bfloat16"``.
        device: type of the device, ``"cuda"``.
        weight: name of the parameter that the layer multiplies with, ``""`` for activation products.
        frozen: the parameter needs no gradient.
        held: the saved operand lives until the backward for another reader or the caller; no product saves it.
        sequence: tokens of one sequence or image of the saved operand, where the tokens of several are contracted; 0
            where there is but one axis of tokens, or their number varies.
        source: the user's source line.
        window: of a convolution: M, N, K are those of the product with x unfolded under it; None elsewhere.
        image: elements of the x that is unfolded, 0 elsewhere.
        recurrence: ``"recurrent"`` or ``"input"`` where it is part of a recurrence (``passes/find_recurrence.py``).
    """

    node: str
    role: Role
    layer: str
    M: Size
    N: Size
    K: Size
    dtype: str
    device: str
    left: str
    right: str
    op: str = "mm"
    gradient: str = ""
    batch: Size = Size(1)
    weight: str = ""
    frozen: bool = False
    held: bool = False
    source: str = ""
    sequence: int = 0
    window: Window | None = None
    image: Size = Size(0)
    recurrence: str = ""

    @property
    def layer_role(self) -> Role:
        """The role by which a scheme is asked for: constant states times W are the first step of a recurrence."""
        if self.role is Role.PARAMETERS and self.recurrence:
            return Role.GRAD_INPUT if self.gradient else Role.FORWARD
        return self.role

    @property
    def saved(self) -> str:
        """The operand that the forward keeps for this backward product: a node name, ``""`` in a forward product."""
        return {"left": self.right, "right": self.left, "": ""}[self.gradient]

    @property
    def saved_extent(self) -> int:
        """Length of the axis of the saved operand that is not contracted."""
        return (self.N if self.gradient == "left" else self.M).hint

    @property
    def gradient_extent(self) -> int:
        """Length of the axis of the gradient that is not contracted."""
        return (self.M if self.gradient == "left" else self.N).hint

    @property
    def operation(self) -> str:
        """``"mm"``, ``"convolution 3×3, stride 2"``."""
        return self.op if self.window is None else f"{self.op} {self.window}"

    @property
    def unfolded(self) -> str:
        """Of a convolution: the matrix that stands for x or its gradient: ``"left"``, ``"right"`` or ``"result"``."""
        return {Role.GRAD_INPUT: "result", Role.GRAD_WEIGHT: "right"}.get(self.role, "left")

    @property
    def flops(self) -> int:
        """Multiplications and additions of the exact product."""
        return 2 * self.batch.hint * self.M.hint * self.N.hint * self.K.hint

    def shape(self) -> str:
        """``"M×N×K"`` with symbols where the shape is dynamic, led by the batch where there is one."""
        batch = f"{self.batch}× " if self.batch != Size(1) else ""
        return f"{batch}{self.M}×{self.N}×{self.K}"


@dataclass(frozen=True)
class Cost:
    """What a scheme costs for one product.

    Attributes:
        seconds: predicted time of the product with all that it needs (quantising included).
        saved_bytes: kept between forward and backward on behalf of this product.
        error: predicted relative RMS error of the result, 0 for exact; None where no model predicts it yet.
    """

    seconds: float
    saved_bytes: int = 0
    error: float | None = None


@dataclass(frozen=True)
class Candidate:
    """A scheme that was considered and rejected. ``cost`` is None where it was not legal, hence never priced."""

    scheme: Scheme
    reason: str
    cost: Cost | None = None


@dataclass(frozen=True)
class Decision:
    """What was chosen for one product, and why.

    Attributes:
        gemm: the product.
        scheme, cost: the choice and its price.
        exact_cost: the price of leaving the product alone.
        reason: one sentence for a person.
        rejected: every other scheme that was considered.
        measured_error: relative error of the choice as a calibration measured it, beside ``cost.error``, the predicted
            one; None where it was not measured.
    """

    gemm: Gemm
    scheme: Scheme
    cost: Cost
    exact_cost: Cost
    reason: str
    rejected: tuple[Candidate, ...] = ()
    measured_error: float | None = None

    @property
    def rewritten(self) -> bool:
        return not isinstance(self.scheme, Exact)


@dataclass(frozen=True)
class Plan:
    """Every decision of one graph, and where the settings behind them came from.

    Attributes:
        decisions: one per product, in graph order.
        device: name of the device profile that priced them.
        training: the graph has a backward.
        settings: option -> (value as JSON, ``"options" | "environment" | "file" | "default"``).
        activation_budget: share of the activations that the partition keeps, the rest being rebuilt in the backward;
            below 1 only where a memory budget asks for less than any scheme keeps.
    """

    decisions: tuple[Decision, ...]
    device: str = ""
    training: bool = True
    settings: tuple[tuple[str, tuple[Any, str]], ...] = ()
    activation_budget: float = 1.0

    def decision(self, node: str) -> Decision | None:
        """The decision on the product at fx node ``node``."""
        return next((d for d in self.decisions if d.gemm.node == node), None)

    @property
    def counts_saturation(self) -> bool:
        return bool(dict(self.settings).get("count_saturation", (False, ""))[0])

    def rewrites(self) -> tuple[Decision, ...]:
        return tuple(d for d in self.decisions if d.rewritten)

    def to_json(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "training": self.training,
            "activation_budget": self.activation_budget,
            "settings": {key: {"value": value, "from": origin} for key, (value, origin) in self.settings},
            "decisions": [_decision_to_json(d) for d in self.decisions],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        settings = tuple((key, (entry["value"], entry["from"])) for key, entry in data["settings"].items())
        decisions = tuple(_decision_from_json(d) for d in data["decisions"])
        return cls(decisions, data["device"], data["training"], settings, data.get("activation_budget", 1.0))

    def digest(self) -> str:
        """A hash that is the same in every process."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def _cost_to_json(cost: Cost | None) -> dict[str, Any] | None:
    return None if cost is None else dataclasses.asdict(cost)


def _cost_from_json(data: dict[str, Any] | None) -> Cost | None:
    return None if data is None else Cost(**_known(Cost, data))


def _known(kind: type[Any], data: dict[str, Any]) -> dict[str, Any]:
    """The fields that this release knows; a later one may have added some."""
    return {key: data[key] for key in kind.__dataclass_fields__ if key in data}


def _decision_to_json(decision: Decision) -> dict[str, Any]:
    return {
        "gemm": dataclasses.asdict(decision.gemm),
        "scheme": decision.scheme.to_json(),
        "cost": _cost_to_json(decision.cost),
        "exact_cost": _cost_to_json(decision.exact_cost),
        "reason": decision.reason,
        "measured_error": decision.measured_error,
        "rejected": [
            {"scheme": c.scheme.to_json(), "reason": c.reason, "cost": _cost_to_json(c.cost)} for c in decision.rejected
        ],
    }


def _decision_from_json(data: dict[str, Any]) -> Decision:
    fields = dict(data["gemm"], role=Role(data["gemm"]["role"]))
    sizes = (key for key in ("M", "N", "K", "batch", "image") if key in fields)
    fields.update({key: Size(**_known(Size, fields[key])) for key in sizes})
    if fields.get("window") is not None:
        fields["window"] = Window(**{key: tuple(values) for key, values in _known(Window, fields["window"]).items()})
    return Decision(
        gemm=Gemm(**_known(Gemm, fields)),
        scheme=Scheme.from_json(data["scheme"]),
        cost=Cost(**_known(Cost, data["cost"])),
        exact_cost=Cost(**_known(Cost, data["exact_cost"])),
        reason=data["reason"],
        rejected=tuple(
            Candidate(Scheme.from_json(c["scheme"]), c["reason"], _cost_from_json(c["cost"])) for c in data["rejected"]
        ),
        measured_error=data.get("measured_error"),
    )
