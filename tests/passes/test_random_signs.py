"""Random signs in a whole step: the gradients of weights are unbiased, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from harness import ratio, traced
from torch import nn
from torch.utils.checkpoint import checkpoint

import hadamard_fx
from hadamard_fx import compat

SIGNS: dict[str, Any] = {"profile": "hot", "grad_input": "exact"}


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(32, 48), nn.Linear(48, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = checkpoint(lambda h: self.last(torch.tanh(self.first(h))), x, use_reentrant=False)
        return result


class Shared(nn.Module):
    """One weight, two products: both of its gradients meet x's behind the same signs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(F.gelu(self.fc(x)))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layers": (lambda: nn.Sequential(nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 8)), (4, 35, 32)),
    "shared": (Shared, (150, 32)),
    "checkpointed": (Checkpointed, (160, 32)),
    "convolution": (lambda: nn.Conv2d(4, 8, 3, padding=1), (3, 4, 7, 7)),
}


def weights(module: nn.Module, run: Callable[..., Any], x: torch.Tensor, target: torch.Tensor) -> dict[str, Any]:
    module.zero_grad()
    F.mse_loss(run(x), target).backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_the_mean_over_steps_is_the_gradient(name: str) -> None:
    torch.manual_seed(0)
    made, shape = MODELS[name]
    module, x = made(), torch.randn(shape) + 0.5
    target = torch.randn(module(x).shape)
    exact = weights(module, module, x, target)
    compiled, _ = traced(module, SIGNS)
    draws = [weights(module, compiled, x, target) for _ in range(100)]
    for key, gradient in exact.items():
        mean = torch.stack([draw[key] for draw in draws]).mean(0)
        alone = sum(ratio(draw[key], gradient) for draw in draws) / len(draws)
        if key.endswith("bias"):
            assert alone < 1e-5, key
        else:
            assert alone > 0.1, key
            assert ratio(mean, gradient) < 0.15 * alone + 0.01, (key, ratio(mean, gradient), alone)


def test_steps_differ_and_a_seed_repeats_them() -> None:
    torch.manual_seed(0)
    module, x = nn.Linear(32, 16), torch.randn(128, 32)
    compiled = torch.compile(module, backend="hadamard", options={**SIGNS, "grad_weight": {"rounding": "nearest"}})
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found += [weights(module, compiled, x, torch.zeros(128, 16))["weight"] for _ in range(2)]
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3])
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[0], found[4])


def test_a_forward_draws_what_it_drew_before() -> None:
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.after = nn.Linear(32, 48), nn.Linear(48, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.after(F.dropout(torch.tanh(self.before(F.dropout(x, 0.2))), 0.5))

    torch.manual_seed(0)
    module, x = Dropped(), torch.randn(128, 32)
    results = []
    for options in ({"backend": "inductor"}, {"backend": "hadamard", "options": {"profile": "hot"}}):
        torch._dynamo.reset()
        compiled = torch.compile(module, **options)  # type: ignore[call-overload]
        torch.manual_seed(5)
        results.append(compiled(x))
    assert torch.equal(*results)


def test_one_seed_is_all_that_is_kept_for_the_signs() -> None:
    module = nn.Sequential(*(nn.Linear(32, 32) for _ in range(4)))
    compiled, trace = traced(module, SIGNS)
    compiled(torch.randn(64, 32)).sum().backward()
    calls = [
        compat.arguments(node)["signs"]
        for graph in (trace.forward[0], trace.backward[0])
        for node in graph.graph.nodes
        if "compress_tokens" in str(node.target)
    ]
    assert len(calls) == 8 and len({node.name for node in calls}) == 1
    assert sum(saved.bytes == 8 for saved in trace.pipelines[0].saved) == 1


@pytest.mark.parametrize("options", [{"rank": 16}, {"signs": "none"}], ids=str)
def test_no_seed_where_there_are_no_signs(options: dict[str, Any]) -> None:
    compiled, trace = traced(nn.Linear(32, 32), {**SIGNS, "grad_weight": {"rounding": "nearest", **options}})
    compiled(torch.randn(64, 32)).sum().backward()
    for graph in (trace.forward[0], trace.backward[0]):
        assert not graph.graph.find_nodes(op="call_function", target=compat.seeds_op)


def test_the_report_names_them() -> None:
    module = nn.Linear(32, 32)
    explanation = hadamard_fx.explain(module, options={"profile": "hot"})(torch.randn(64, 32))
    assert "random signs" in explanation.text()
    plain = hadamard_fx.explain(module, options={"profile": "hot", "grad_weight": {"signs": "none"}})
    assert "random signs" not in plain(torch.randn(64, 32)).text()
