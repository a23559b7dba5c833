"""Models by name: a body that makes features, in a shallow and a deep part, and a linear head.

``MODELS`` holds functions of (shape of one example, number of scores). A model written elsewhere is one line, if its
forward can be traced by torch.fx and ends in a linear layer::

    MODELS["mine"] = lambda shape, outputs: cut(Mine(outputs, shape[0]), shallow="layer2", head="fc")
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, fx, nn
from torch.fx.passes.split_module import split_module

from examples.resnet32 import ResNet32
from hadamard_fx.errors import HadamardError

__all__ = ["MODELS", "Body", "Classifier", "ModelError", "cut", "three_layers"]


class ModelError(HadamardError, ValueError):
    """A model cannot be cut into a shallow part, a deep part and a head."""


class Body(nn.Module):
    """Inputs [B, …] to features [B, width]; ``shallow`` is what MEMO shares between tasks."""

    def __init__(self, shallow: nn.Module, deep: nn.Module, width: int) -> None:
        super().__init__()
        self.shallow, self.deep, self.width = shallow, deep, width

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.deep(self.shallow(x))
        return features


class Classifier(nn.Module):
    """Inputs [B, …] to scores [B, outputs]."""

    def __init__(self, body: Body, head: nn.Linear) -> None:
        super().__init__()
        self.body, self.head = body, head

    def features(self, x: Tensor) -> Tensor:
        """[B, width], what the head reads."""
        features: Tensor = self.body(x)
        return features

    def scores(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.features(x))
        return scores

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(x)


def three_layers(shape: tuple[int, ...], outputs: int, width: int = 128) -> Classifier:
    """The fully connected net of HDQT's activity recognition; inputs are flattened."""
    first, second = nn.Linear(math.prod(shape), width), nn.Linear(width, width)
    head = nn.Linear(width, outputs)
    shallow = nn.Sequential(nn.Flatten(), first, nn.ReLU())
    return Classifier(Body(shallow, nn.Sequential(second, nn.ReLU()), width), head)


class _Tracer(fx.Tracer):
    """Leaves the modules whole behind which a model is cut."""

    def __init__(self, whole: tuple[str, ...]) -> None:
        super().__init__()
        self.whole = whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self.whole or super().is_leaf_module(m, module_qualified_name)


def cut(model: nn.Module, shallow: str, head: str) -> Classifier:
    """A model as shallow part, deep part and head. The modules stay the same; nothing is copied.

    Args:
        model: inputs [B, …] to scores [B, outputs], traceable by torch.fx.
        shallow: name of the last submodule of the shallow part, which runs as a whole.
        head: name of the linear layer whose result is the model's.

    Raises:
        ModelError: a name is none of a submodule that runs once, the head is not linear or not last, or values other
            than the result of ``shallow`` pass from the shallow part to the deep one.
    """
    graph = _Tracer((shallow, head)).trace(model)
    calls = {name: graph.find_nodes(op="call_module", target=name) for name in (shallow, head)}
    for name, found in calls.items():
        if len(found) != 1:
            known = ", ".join(name for name, _ in model.named_children())
            raise ModelError(f"submodule {name!r} runs {len(found)} times, not once; the model's parts: {known}")
    (last_shallow,), (last,) = calls.values()
    linear = model.get_submodule(head)
    if not isinstance(linear, nn.Linear) or graph.output_node().args != (last,):
        raise ModelError(f"{head!r} is a {type(linear).__name__}; name the nn.Linear that the model ends with")
    place = {node: number for number, node in enumerate(graph.nodes)}
    bounds = (place[last_shallow], place[last] - 1)
    crossing = [
        node.name
        for node in graph.nodes
        for user in node.users
        if node is not last_shallow and _part(place[node], bounds) == 0 and _part(place[user], bounds) > 0
    ]
    if crossing:
        raise ModelError(f"besides the result of {shallow!r}, {crossing[0]!r} is used behind it; cut somewhere else")
    parts = split_module(fx.GraphModule(model, graph), model, lambda node: _part(place[node], bounds))
    body = Body(parts.get_submodule("submod_0"), parts.get_submodule("submod_1"), linear.in_features)
    return Classifier(body, linear)


def _part(place: int, bounds: tuple[int, int]) -> int:
    return sum(place > bound for bound in bounds)


def _resnet32(shape: tuple[int, ...], outputs: int) -> Classifier:
    """The paper's network for images; MEMO shares its first two stages."""
    return cut(ResNet32(outputs, shape[0]), shallow="stages.1", head="head")


MODELS: dict[str, Callable[[tuple[int, ...], int], Classifier]] = {"three_layers": three_layers, "resnet32": _resnet32}
