"""Models that a hostile reader would try. Each once had a wrong role, a lost gradient, or memory kept twice."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from harness import gradients, ratio, traced
from torch import nn

import hadamard_fx
from hadamard_fx.plan import Decision, Role
from hadamard_fx.report import Report
from hadamard_fx.scheme import Exact, LowRank

HOT = {"profile": "hot", "grad_input": {"bits": 8, "rounding": "nearest"}}


class Merged(nn.Module):
    """An adapter that is merged into its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(64, 64)
        self.w, self.b, self.a = (nn.Parameter(torch.randn(shape) * 0.1) for shape in ((64, 64), (64, 16), (16, 64)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(torch.tanh(self.before(x)), self.w + self.b @ self.a)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def compressions(graph: torch.fx.GraphModule) -> int:
    return sum("compress_tokens" in str(node.target) for node in graph.graph.nodes)


def test_products_of_parameters_are_left_exact() -> None:
    module, x = Merged(), torch.randn(512, 64)
    exact = gradients(module, module, x)
    compiled, trace = traced(module, {**HOT, "grad_weight": {"rank": 16, "rounding": "nearest"}})
    found = gradients(compiled, module, x)
    assert max(ratio(found[name], exact[name]) for name in ("a", "b", "w")) < 0.03
    alone = trace.of(Role.PARAMETERS)
    assert len(alone) == 3 and all(isinstance(d.scheme, Exact) and "no tokens" in d.reason for d in alone)


def test_a_product_of_square_weights_compiles() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before = nn.Linear(32, 32)
            self.u, self.v = nn.Parameter(torch.randn(32, 32)), nn.Parameter(torch.randn(32, 32))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.before(x) @ (self.u @ self.v)

    module = Product()
    compiled, trace = traced(module, HOT)
    gradients(compiled, module, torch.randn(40, 32))
    assert trace.of(Role.PARAMETERS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_wider_master_weight(dtype: torch.dtype) -> None:
    class Master(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before = nn.Linear(32, 32)
            self.w = nn.Parameter(torch.randn(24, 32, dtype=dtype))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.linear(self.before(x).bfloat16(), self.w.bfloat16())

    module, x = Master(), torch.randn(40, 32)
    exact = gradients(module, module, x)
    compiled, _ = traced(module, {**HOT, "grad_weight": {"rank": 16, "rounding": "nearest"}})
    found = gradients(compiled, module, x)
    assert max(ratio(found[name], exact[name]) for name in exact) < 0.03


def test_separate_layers_share_one_compressed_activation_of_three_axes() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before = nn.Linear(64, 64)
            self.q, self.k, self.v = (nn.Linear(64, 64, bias=False) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.before(x)
            return self.q(h).sin() + self.k(h).sin() + self.v(h).sin()

    module = Split()
    compiled, trace = traced(module, HOT)
    gradients(compiled, module, torch.randn(2, 40, 64))
    assert compressions(trace.forward[0]) == 1
    shared = [d for d in trace.of(Role.GRAD_WEIGHT) if d.gemm.layer in "qkv"]
    assert len({d.gemm.saved for d in shared}) == 1


@pytest.mark.parametrize("function", [torch.tanh, torch.sigmoid, torch.relu, F.gelu], ids=lambda f: f.__name__)
def test_a_compressed_activation_is_never_kept_beside_its_source(function) -> None:  # type: ignore[no-untyped-def]
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 256), nn.Linear(256, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(function(self.a(x)))

    module = Two()
    compiled, trace = traced(module, HOT)
    gradients(compiled, module, torch.randn(128, 64))
    pipeline = trace.pipelines[0]
    seed = 8  # of the random signs, kept or made again
    assert sum(s.bytes for s in pipeline.saved) <= seed + sum(s.bytes for s in pipeline.saved_exact)
    predicted = sum(d.cost.saved_bytes for d in trace.of(Role.GRAD_WEIGHT))
    kept = sum(s.bytes for s in pipeline.saved if s.node.startswith("getitem"))
    assert predicted == pytest.approx(kept, rel=0.01)


def test_fewer_tokens_than_a_block_are_left_exact() -> None:
    module = nn.Linear(32, 32)
    compiled, trace = traced(module, HOT)
    gradients(compiled, module, torch.randn(5, 32))
    (decision,) = trace.of(Role.GRAD_WEIGHT)
    assert isinstance(decision.scheme, Exact) and "do not fill a block" in decision.reason
    assert any(isinstance(c.scheme, LowRank) for c in decision.rejected)


@pytest.mark.parametrize("signs", ["none", "random"])
def test_what_a_rank_cut_makes_of_independent_tokens(signs: str) -> None:
    """What the README says of it: half of the gradient; behind random signs all of it, and noise of its size. Tokens
    that are alike lose nothing without signs."""
    module = nn.Linear(64, 64)
    noise, one = 10 * torch.randn(2048, 64), torch.randn(1, 64).expand(2048, 64).contiguous()

    def run(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return module(x) + target

    compiled, _ = traced(run, {**HOT, "grad_weight": {"signs": signs}})
    measured = []
    for inputs in ((torch.randn(2048, 64), noise), (one, one)):
        exact = gradients(run, module, *inputs)["weight"].flatten()
        found = gradients(compiled, module, *inputs)["weight"].flatten()
        measured.append((float(found @ exact / exact.square().sum()), float(torch.cosine_similarity(found, exact, 0))))
    (slope, cosine), (slope_alike, cosine_alike) = measured
    assert slope == pytest.approx(0.5 if signs == "none" else 1.0, abs=0.06) and cosine == pytest.approx(0.7, abs=0.06)
    if signs == "none":
        assert slope_alike == pytest.approx(1.0, abs=0.02) and cosine_alike > 0.999


def test_the_projection_inside_multihead_attention_has_its_own_name() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer = nn.MultiheadAttention(32, 4, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.mixer(x, x, x, need_weights=False)[0]

    module = Wrapped()
    compiled, trace = traced(module, HOT)
    gradients(compiled, module, torch.randn(2, 20, 32, requires_grad=True))
    assert "mixer.out_proj" in {d.gemm.layer for d in trace.decisions}


def compiled_report(run: Callable[..., torch.Tensor], *inputs: torch.Tensor, **settings: Any) -> tuple[Report, str]:
    """The report of one training step, and all that was warned of."""
    torch._dynamo.reset()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compiled = torch.compile(run, backend="hadamard", options={"profile": "hot", **settings})
        compiled(*inputs).float().square().mean().backward()
    return hadamard_fx.reports()[-1], "\n".join(str(warning.message) for warning in caught)


def rewritten(report: Report, role: Role) -> list[Decision]:
    return [decision for decision in report.plan.rewrites() if decision.gemm.role is role]


def test_an_op_that_returns_nothing_is_in_nobodys_way() -> None:
    layer = nn.Linear(32, 32)

    def run(x: torch.Tensor) -> torch.Tensor:
        torch._assert_async(x.sum() < 1e9, "too large")
        return layer(x)

    report, _ = compiled_report(run, torch.randn(64, 32))
    assert len(rewritten(report, Role.GRAD_WEIGHT)) == 1


def test_a_short_batch_decides_for_short_batches_only() -> None:
    module = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64))
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="hadamard", options={"profile": "hot"})
    found = []
    for tokens in (256, 192, 10, 192, 320, 9):
        before = len(hadamard_fx.reports())
        compiled(torch.randn(tokens, 64)).square().mean().backward()
        found += [(tokens, len(rewritten(r, Role.GRAD_WEIGHT))) for r in hadamard_fx.reports()[before:]]
    assert found == [(256, 2), (192, 2), (10, 0)], "320 tokens run what was compiled for 192, 9 what was for 10"

    torch._dynamo.reset()
    compiled = torch.compile(module, backend="hadamard", options={"profile": "hot"}, dynamic=True)
    found = []
    for tokens in (10, 192):
        compiled(torch.randn(tokens, 64)).square().mean().backward()
        found.append((len(hadamard_fx.reports()), len(rewritten(hadamard_fx.reports()[-1], Role.GRAD_WEIGHT))))
    assert found == [(1, 0), (2, 2)]


def test_random_tensors_may_be_tokens() -> None:
    first, second = nn.Linear(64, 128), nn.Linear(128, 32)
    report, _ = compiled_report(lambda c: second(F.relu(first(torch.randn(256, 64)))) * c, torch.ones(1))
    assert len(rewritten(report, Role.GRAD_WEIGHT)) >= 1 and len(rewritten(report, Role.GRAD_INPUT)) == 1


def test_a_decorated_forward_changes_no_names() -> None:
    def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*arguments: Any, **named: Any) -> Any:
            return function(*arguments, **named)

        return wrapper

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 64)

        @decorated
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x)

    x = torch.randn(64, 64)
    report, warned = compiled_report(Net(), x, overrides={"fc": {"grad_weight": {"rank": 4}}})
    explained = hadamard_fx.explain(Net(), options={"profile": "hot"})(x).reports[0]
    assert {d.gemm.layer for d in report.plan.decisions} == {d.gemm.layer for d in explained.plan.decisions} == {"fc"}
    assert "matches no layer" not in warned
    (decision,) = rewritten(report, Role.GRAD_WEIGHT)
    assert isinstance(decision.scheme, LowRank) and decision.scheme.rank == 4


def test_products_that_are_not_looked_at_are_named() -> None:
    left, right = nn.Linear(64, 64), nn.Linear(64, 64)
    report, warned = compiled_report(
        lambda x: torch.cond(x.sum() > 0, left, right, (x,)), torch.randn(32, 64, requires_grad=True)
    )
    assert "the branches of cond" in warned and any("the branches of cond" in text for text in report.warnings)
    assert "looks at" in report.text()


def test_regions_that_are_compiled_by_themselves_are_left_exact_and_named() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(64, 96), nn.Linear(96, 64)

        @torch.compiler.nested_compile_region
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.down(F.gelu(self.up(x)))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks, self.head = nn.ModuleList(Block() for _ in range(3)), nn.Linear(64, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = block(x)
            return self.head(x)

    module, x = Net(), torch.randn(128, 64)
    exact = gradients(module, module, x)
    report, warned = compiled_report(module, x)
    assert not report.plan.decisions and "nested_compile_region" in warned
    module.zero_grad()
    found = gradients(torch.compile(module, backend="hadamard", options={"profile": "hot"}), module, x)
    assert all(ratio(found[name], exact[name]) < 1e-5 for name in exact)
