"""Producers in the quantising kernel: what is fused, what is left alone and why, and that no gradient changes."""

from __future__ import annotations

import functools
import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from harness import Trace, traced
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import hadamard_fx
from hadamard_fx import backend, compat
from hadamard_fx.fusion import Fusion
from hadamard_fx.kernels import quantize_both
from hadamard_fx.kernels.prologue import Prologue, Step
from hadamard_fx.passes.manager import Pipeline
from hadamard_fx.passes.pointwise import Builder, is_pointwise

CPU = frozenset({"cpu"})
GROUPED = {"profile": "hot", "grad_input": {"bits": 8, "group": 32}, "grad_weight": {"group": 64}}
NAMES = ("quantize_rows", "compress_tokens", "quantize_both")


class Mlp(nn.Module):
    def __init__(self, act: Any, bias: bool = True) -> None:
        super().__init__()
        self.fc1, self.fc2, self.act = nn.Linear(32, 64, bias=bias), nn.Linear(64, 32, bias=bias), act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Gated(nn.Module):
    """The MLP of Llama."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(i, o, bias=False) for i, o in ((32, 64), (32, 64), (64, 32)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Pre-norm with a residual: the gradient of fc2's output is that of the residual, too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(32), nn.Sequential(Mlp(nn.GELU()), nn.Dropout(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.norm(x))


class Scaled(nn.Module):
    """The gradient of fc's output is also that of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.shift = nn.Linear(32, 64), nn.Parameter(torch.randn(2, 96, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(self.fc(x) + self.shift)


def run(module: nn.Module, options: Any, fusible: frozenset[str]) -> tuple[dict[str, torch.Tensor], Trace]:
    """Gradients with the same random draws every time."""
    x = torch.randn(2, 96, 32, generator=torch.Generator().manual_seed(3)).requires_grad_()
    compiled, trace = traced(module, options, fusible)
    module.zero_grad()
    torch.manual_seed(7)
    compiled(x).square().mean().backward()
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return {**found, "x": x.grad}, trace  # type: ignore[dict-item]


def counts(graph: torch.fx.GraphModule) -> tuple[int, ...]:
    """Calls of ``NAMES``."""
    targets = [str(node.target) for node in graph.graph.nodes]
    return tuple(targets.count(f"hadamard.{name}.default") for name in NAMES)


def facts(trace: Trace, tensor: str = "g_y") -> dict[str, Fusion]:
    return {f.layer: f for p in trace.pipelines for f in p.fusions if f.tensor == tensor}


CASES = {
    "gelu": lambda: Mlp(nn.GELU()),
    "gelu-tanh": lambda: Mlp(nn.GELU("tanh")),
    "relu": lambda: Mlp(nn.ReLU()),
    "silu": lambda: Mlp(nn.SiLU(), bias=False),
    "gated": Gated,
    "block": Block,
    "scaled": Scaled,
}


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("name", CASES)
def test_no_gradient_changes(name: str, rounding: str) -> None:
    torch.manual_seed(0)
    module = CASES[name]()
    options = {key: {**v, "rounding": rounding} if isinstance(v, dict) else v for key, v in GROUPED.items()}
    apart, before = run(module, options, frozenset())
    fused, after = run(module, options, CPU)
    assert counts(before.backward[0])[2] == 0
    assert counts(after.backward[0])[2] > 0
    for key, gradient in apart.items():
        if key.endswith("bias") or key == "shift":  # sums of float32 in another order
            torch.testing.assert_close(fused[key], gradient, rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(fused[key], gradient), key


@pytest.mark.parametrize("name", ["gelu", "gelu-tanh", "relu", "silu"])
def test_the_backward_of_an_activation_is_computed_in_the_kernel(name: str) -> None:
    _, trace = run(CASES[name](), GROUPED, CPU)
    assert counts(trace.backward[0]) == (0, 0, 2)
    fact = facts(trace)["fc1"]
    assert fact.forms == ("rows", "tokens")
    assert any("backward" in operation or "silu" in operation for operation in fact.operations)
    # apart: written and read twice; fused: two leaves are read, as they are to compute y anyway
    tile = 2 * 96 * 64 * 4
    assert fact.saved_bytes == 3 * tile
    (both,) = [
        n for n in trace.backward[0].graph.nodes if "quantize_both" in str(n.target) and n.args[1].count("x") > 1
    ]
    assert not compat.arguments(both)["keep"]
    remaining = {node.target for node in trace.backward[0].graph.nodes}
    assert torch.ops.aten.mul.Tensor not in remaining
    assert torch.ops.aten.where.self not in remaining


def test_an_activation_is_not_computed_twice_in_an_exact_forward() -> None:
    _, trace = run(Mlp(nn.GELU()), GROUPED, CPU)
    assert counts(trace.forward[0]) == (0, 2, 0)
    assert "the forward reads it" in facts(trace, "x")["fc2"].reason


def test_both_halves_of_a_gated_mlp_share_leaves() -> None:
    _, trace = run(Gated(), GROUPED, CPU)
    found, tile = facts(trace), 2 * 96 * 64 * 4
    assert counts(trace.backward[0]) == (0, 0, 3)
    # Inductor would read three tiles, write two, and four reads follow; the kernels read two tiles and three
    assert found["gate"].saved_bytes + found["up"].saved_bytes == 4 * tile


def test_without_producers_both_forms_come_from_one_read() -> None:
    _, trace = run(Mlp(nn.GELU()), GROUPED, CPU)
    fact = facts(trace)["fc2"]  # its g_y is the gradient that the caller hands in
    assert fact.operations == ()
    assert fact.forms == ("rows", "tokens")
    assert fact.saved_bytes == 2 * 96 * 32 * 4


def test_what_others_read_is_kept() -> None:
    _, trace = run(Scaled(), GROUPED, CPU)
    (both,) = [node for node in trace.backward[0].graph.nodes if "quantize_both" in str(node.target)]
    assert compat.arguments(both)["keep"], "shift's gradient is y itself"
    assert next(iter(both.users)).target is operator.getitem
    outputs = trace.backward[0].graph.find_nodes(op="output")[0].args[0]
    assert any((node is not None and both in node.all_input_nodes) or _view_of(node, both) for node in outputs)


def _view_of(node: Any, both: torch.fx.Node) -> bool:
    return node is not None and any(both in above.all_input_nodes for above in node.all_input_nodes)


class Classifier(nn.Module):
    """A cross-entropy behind a linear layer: its gradient subtracts 1 where the class is."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(32, 50, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        classes = torch.arange(2 * 96, device=x.device) % 50
        return F.cross_entropy(self.head(x).flatten(0, 1), classes, ignore_index=3)


def test_the_classes_of_a_cross_entropy_are_compared_in_the_kernel() -> None:
    module = Classifier()
    apart, _ = run(module, GROUPED, frozenset())
    fused, trace = run(module, GROUPED, CPU)
    assert "eq" in facts(trace)["head"].operations
    (both,) = [node for node in trace.backward[0].graph.nodes if "quantize_both" in str(node.target)]
    inputs = [node.meta["val"] for node in both.args[0]]
    assert not any(x.dtype is torch.bool and x.numel() == 2 * 96 * 50 for x in inputs)
    assert any(x.dtype is torch.int64 for x in inputs)
    assert all(torch.equal(fused[key], gradient) for key, gradient in apart.items())


@pytest.mark.parametrize(("classes", "inside"), [(2**24, True), (2**24 + 1, False)])
def test_integers_are_compared_where_float32_has_them(classes: int, inside: bool) -> None:
    graph = torch.fx.Graph()
    classes_of = graph.placeholder("classes")
    numbers = graph.call_function(
        torch.ops.prims.iota.default,
        (classes,),
        {"start": 0, "step": 1, "dtype": torch.int64, "device": "cpu", "requires_grad": False},
    )
    equal = graph.call_function(torch.ops.aten.eq.Tensor, (classes_of, numbers))
    with FakeTensorMode():
        classes_of.meta["val"], numbers.meta["val"] = torch.empty(4, 1, dtype=torch.int64), torch.arange(classes)
        equal.meta["val"] = torch.empty(4, classes, dtype=torch.bool)
    assert is_pointwise(equal) is inside
    for constant, exact in ((2**24 - 1, True), (2**24, False), (1 - 2**24, True), (-(2**24), False)):
        compared = graph.call_function(torch.ops.aten.eq.Scalar, (classes_of, constant))
        compared.meta["val"] = torch.empty(4, 1, dtype=torch.bool)
        assert is_pointwise(compared) is exact, constant
    between = graph.call_function(torch.ops.aten.lt.Tensor, (classes_of, classes_of))
    between.meta["val"] = equal.meta["val"]
    assert not is_pointwise(between), "both may be anything"


def test_bias_gradients_come_out_of_the_kernel() -> None:
    _, trace = run(Mlp(nn.GELU()), GROUPED, CPU)
    kernels = [node for node in trace.backward[0].graph.nodes if "quantize_both" in str(node.target)]
    assert all(compat.arguments(node)["sums"] for node in kernels)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({**GROUPED, "grad_input": {"bits": 8, "group": 0}}, "whole axis"),
        ({**GROUPED, "grad_weight": {"group": 0}}, "whole axis"),
        ({**GROUPED, "grad_input": {"scale": "tensor"}}, "one scale per tensor"),
    ],
)
def test_a_scale_that_needs_a_read_of_its_own_leaves_all_alone(options: Any, reason: str) -> None:
    _, trace = run(Mlp(nn.GELU()), options, CPU)
    assert counts(trace.backward[0])[2] == 0
    assert all(reason in fact.reason for fact in facts(trace).values())


def test_one_form_alone_is_fused_only_with_producers() -> None:
    options = {**GROUPED, "grad_input": "exact"}
    module = Mlp(nn.GELU())
    apart, _ = run(module, options, frozenset())
    fused, trace = run(module, options, CPU)
    found = facts(trace)
    # g_y of fc1 is also read by the exact product for g_x, hence written; that of fc2 is a placeholder
    assert not found["fc2"].forms
    assert all(torch.allclose(fused[key], apart[key], rtol=1e-4, atol=1e-6) for key in apart)


def test_dynamic_shapes_are_left_alone_with_a_reason() -> None:
    module = Mlp(nn.GELU())
    compiled, trace = traced(module, GROUPED, CPU, dynamic=True)
    compiled(torch.randn(2, 96, 32, requires_grad=True)).square().mean().backward()
    assert counts(trace.backward[0])[2] == 0
    assert all("symbolic" in fact.reason for fact in facts(trace).values())


def test_no_other_device_gets_it() -> None:
    _, trace = run(Mlp(nn.GELU()), GROUPED, frozenset({"cuda"}))
    assert not facts(trace)
    assert counts(trace.backward[0])[2] == 0


def test_a_quantised_forward_may_store_what_it_computes() -> None:
    options = {**GROUPED, "forward": {"bits": 8, "group": 32, "rounding": "nearest"}}
    module = Mlp(nn.GELU())
    apart, _ = run(module, options, frozenset())
    fused, trace = run(module, options, CPU)
    assert counts(trace.forward[0])[2] > 0
    assert facts(trace, "x")["fc2"].forms == ("rows", "tokens")
    assert all(torch.allclose(fused[key], apart[key], rtol=1e-4, atol=1e-6) for key in apart)


def test_the_report_names_what_is_fused_also_on_a_cache_hit(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(backend, "Pipeline", functools.partial(Pipeline, fusible=CPU))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    module, x = Mlp(nn.GELU()), torch.randn(2, 96, 32, requires_grad=True)
    found = []
    for _ in range(2):
        torch._dynamo.reset()
        compiled = torch.compile(module, backend=hadamard_fx.hadamard, options=GROUPED)
        compiled(x).square().mean().backward()
        found.append(hadamard_fx.reports()[-1])
    assert found[1].from_cache
    assert found[0].fusions == found[1].fusions
    text = found[1].text(details=True, width=140)
    assert "g_y of fc1: gelu, gelu_backward computed in the quantising kernel, 144 KiB less traffic" in text
    assert "x of fc2: the forward reads it" in text


def test_seeds_start_at_multiples_of_16_bytes() -> None:
    """Else Inductor takes whatever is computed from what they touch for unaligned, and gives up wide loads."""
    _, trace = run(Mlp(nn.GELU()), GROUPED, frozenset())
    draws = [node for node in trace.backward[0].graph.nodes if node.target is torch.ops.aten.select.int]
    assert len(draws) >= 3 and all(node.args[2] * torch.int64.itemsize % 16 == 0 for node in draws)


class Context(nn.Module):
    """The sum of one gradient over the tokens is part of what makes the next."""

    def __init__(self) -> None:
        super().__init__()
        self.fc0, self.fc1, self.out = nn.Linear(32, 64), nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(0, 1)
        first = self.fc0(x)
        return self.out(torch.tanh(self.fc1(x) + first.mean(0, keepdim=True)) * torch.sigmoid(first))


def test_a_sum_that_the_kernel_makes_may_be_a_leaf_of_another_chain() -> None:
    torch.manual_seed(0)
    module = Context()
    options = {**GROUPED, "grad_input": {**GROUPED["grad_input"], "rounding": "nearest"}}  # type: ignore[dict-item]
    options["grad_weight"] = {**GROUPED["grad_weight"], "rounding": "nearest"}  # type: ignore[dict-item]
    apart, _ = run(module, options, frozenset())
    fused, trace = run(module, options, CPU)
    assert counts(trace.backward[0])[2] == 3
    assert all(torch.allclose(fused[key], apart[key], rtol=0.05, atol=1e-3) for key in apart)


def test_a_layer_that_stays_exact_reads_what_inductor_computes() -> None:
    """Also where other layers' forward is quantised."""
    options = {**GROUPED, "forward": {"bits": 8, "group": 32, "rounding": "nearest"}, "overrides": {"fc2": "exact"}}
    _, trace = run(Mlp(nn.GELU()), options, CPU)
    calls = [n for n in trace.forward[0].graph.nodes if "quantize_both" in str(n.target)]
    kept = [call for call in calls if compat.arguments(call)["keep"]]
    assert not kept


@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_other_devices_keep_the_kernels_that_they_have(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    reason = quantize_both.why_not_there(torch.device("cuda", 0))
    assert ("compute capability 9.0" in reason) == (capability == (8, 0)) and bool(reason) == (capability == (8, 0))
    assert not quantize_both.why_not_there(torch.device("cpu"))


def test_constants_of_different_types_are_different_steps() -> None:
    builder = Builder()
    graph = torch.fx.Graph()
    condition = graph.placeholder("c")
    condition.meta["val"] = torch.empty(2, 2, dtype=torch.bool)
    builder.leaf(condition, "tile")
    number, truth = builder.step("where", "x0", 1.0, 0.0), builder.step("where", "x0", True, False)
    zeros = builder.step("mul", number, 0.0), builder.step("mul", number, -0.0)
    assert number != truth and zeros[0] != zeros[1] and builder.step("where", "x0", 1.0, 0.0) == number


def test_truth_values_may_be_constants() -> None:
    steps = (Step("where", (True, "x0", 0.0)), Step("gt", ("x0", 0.0)), Step("and", ("s1", True)),
             Step("or", ("s2", False)), Step("where", ("s3", "s0", 0.0)))  # fmt: skip
    x = torch.randn(4, 8)
    assert torch.equal(Prologue(("tile",), steps, "s4").evaluate([x], torch.float32), x.relu())
