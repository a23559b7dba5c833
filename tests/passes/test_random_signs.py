"""Random signs in a whole step: the gradients of weights are unbiased, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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


def nudged(module: nn.Module, count: int) -> Iterator[None]:
    """Weights of other bits each time, as each step of a training has, and the same gradients but for rounding."""
    start = {name: p.detach().clone() for name, p in module.named_parameters()}
    for _ in range(count):
        with torch.no_grad():
            for name, p in module.named_parameters():
                p.copy_(start[name] * (1 + 1e-6 * torch.randn_like(p)))
        yield


@pytest.mark.parametrize("name", MODELS)
def test_the_mean_over_steps_is_the_gradient(name: str) -> None:
    torch.manual_seed(0)
    made, shape = MODELS[name]
    module, x = made(), torch.randn(shape) + 0.5
    target = torch.randn(module(x).shape)
    exact = weights(module, module, x, target)
    compiled, _ = traced(module, SIGNS)
    draws = [weights(module, compiled, x, target) for _ in nudged(module, 100)]
    for key, gradient in exact.items():
        mean = torch.stack([draw[key] for draw in draws]).mean(0)
        alone = sum(ratio(draw[key], gradient) for draw in draws) / len(draws)
        if key.endswith("bias"):
            assert alone < 1e-5, key
        else:
            assert alone > 0.1, key
            assert ratio(mean, gradient) < 0.15 * alone + 0.01, (key, ratio(mean, gradient), alone)


@pytest.mark.parametrize(("whose", "budget"), [("ours", 0.7), ("torch's", 0.7), ("torch's", 0.3)])
def test_whoever_computes_signs_again_finds_the_same(budget: float, whose: str) -> None:
    """A partition that keeps little rebuilds the seed in the backward."""
    torch.manual_seed(0)
    module = nn.Sequential(*(layer for _ in range(3) for layer in (nn.Linear(64, 64), nn.GELU())))
    x, target = torch.randn(256, 64), torch.randn(256, 64)
    exact = weights(module, module, x, target)
    options = {**SIGNS, "memory_budget": budget} if whose == "ours" else SIGNS
    with torch._functorch.config.patch(activation_memory_budget=1.0 if whose == "ours" else budget):
        compiled = torch.compile(module, backend="hadamard", options=options)
        draws = [weights(module, compiled, x, target) for _ in nudged(module, 60)]
    for key, gradient in exact.items():
        mean = torch.stack([draw[key] for draw in draws]).mean(0)
        slope = float((mean * gradient).sum() / gradient.square().sum())
        assert slope == pytest.approx(1.0, abs=0.1), key


def test_signs_follow_data_and_weights_and_no_random_state() -> None:
    torch.manual_seed(0)
    module, x = nn.Linear(32, 16), torch.randn(128, 32)
    other = torch.cat([x[:1] * (1 + 1e-6), x[1:]])
    compiled = torch.compile(module, backend="hadamard", options={**SIGNS, "grad_weight": {"rounding": "nearest"}})
    found = []
    for data in (x, x, other):
        found.append(weights(module, compiled, data, torch.zeros(128, 16))["weight"])
    with torch.no_grad():
        module.weight.mul_(1 + 1e-6)
    found.append(weights(module, compiled, x, torch.zeros(128, 16))["weight"])
    assert torch.equal(found[0], found[1])
    assert ratio(found[2], found[0]) > 0.1 < ratio(found[3], found[0])


class Dropped(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.before, self.after, self.kind = nn.Linear(32, 48), nn.Linear(48, 32), kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.before(F.dropout(x, 0.2)))
        if self.kind == "graph break":
            torch._dynamo.graph_break()
        if self.kind == "drop path":
            h = h * h.new_empty((h.shape[0], 1)).bernoulli_(0.7)
        return self.after(F.dropout(h, 0.5))


@pytest.mark.parametrize("kind", ["dropout", "fallback", "graph break", "drop path"])
def test_a_forward_draws_what_it_drew_before(kind: str) -> None:
    torch.manual_seed(0)
    module, x = Dropped(kind), torch.randn(128, 32)
    results = []
    with torch._inductor.config.patch(fallback_random=kind == "fallback"):
        for options in ({"backend": "inductor"}, {"backend": "hadamard", "options": {"profile": "hot"}}):
            torch._dynamo.reset()
            compiled = torch.compile(module, **options)  # type: ignore[call-overload]
            torch.manual_seed(5)
            results.append(torch.cat([compiled(x), compiled(x)]))
    assert torch.equal(*results)


def test_all_products_share_one_seed() -> None:
    module = nn.Sequential(*(nn.Linear(32, 32) for _ in range(4)))
    compiled, trace = traced(module, SIGNS)
    compiled(torch.randn(64, 32)).sum().backward()
    for graph in (trace.forward[0], trace.backward[0]):
        calls = [node for node in graph.graph.nodes if "compress_tokens" in str(node.target)]
        assert len(calls) >= 3 and len({compat.arguments(call)["signs"].name for call in calls}) == 1
    assert sum(saved.bytes == 8 for saved in trace.pipelines[0].saved) <= 1


@pytest.mark.parametrize("options", [{"rank": 16}, {"signs": "none"}], ids=str)
def test_no_seed_without_signs(options: dict[str, Any]) -> None:
    compiled, trace = traced(nn.Linear(32, 32), {**SIGNS, "grad_weight": {"rounding": "nearest", **options}})
    compiled(torch.randn(64, 32)).sum().backward()
    nodes = [node for graph in (trace.forward[0], trace.backward[0]) for node in graph.graph.nodes]
    calls = [node for node in nodes if "compress_tokens" in str(node.target)]
    assert len(calls) == 2 and all(compat.arguments(call)["signs"] is None for call in calls)


def test_the_report_names_them() -> None:
    module = nn.Linear(32, 32)
    explanation = hadamard_fx.explain(module, options={"profile": "hot"})(torch.randn(64, 32))
    assert "random signs" in explanation.text()
    plain = hadamard_fx.explain(module, options={"profile": "hot", "grad_weight": {"signs": "none"}})
    assert "random signs" not in plain(torch.randn(64, 32)).text()
