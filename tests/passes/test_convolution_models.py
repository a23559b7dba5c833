"""Convolutions in models: what stays torch's own call, what is kept for the backward, and every way to run them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness import FINE, gradients, ratio, traced
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hadamard_fx import calibrate
from hadamard_fx.cost_model.device_profile import profile_for
from hadamard_fx.passes.choose import ChooseSchemes
from hadamard_fx.passes.formula import formula
from hadamard_fx.plan import Plan, Role
from hadamard_fx.policy import Policy
from hadamard_fx.report.report import Report

aten = torch.ops.aten
FORWARD = {**FINE, "forward": "hadamard8"}
WIDE: dict[str, Any] = {"bits": 8, "accumulator_bits": 32, "alpha": 1.0}
SATURATING = {
    "profile": "hdqt",
    "forward": {"kind": "saturating_forward", **WIDE},
    "grad_input": {"kind": "saturating_grad_input", "rounding": "nearest", **WIDE},
    "grad_weight": {
        "kind": "saturating_grad_weight",
        "rounding": "nearest",
        "input_rounding": "nearest",
        **WIDE,
    },
}
BOUND = 0.1
"""8 bits: about 1 % per product, three layers deep, forward and backward; a wrong axis or a shift gives 1."""


class Net(nn.Module):
    """3×3 behind a batch norm, a stride, patches; smooth throughout, so that errors stay errors of rounding."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.b = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.c, self.fc = nn.Conv2d(32, 24, 2, stride=2), nn.Linear(24, 5)
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.softplus(self.norm(self.a(x)))
        x = torch.tanh(self.c(torch.tanh(self.b(x))))
        return self.fc(x.mean((2, 3)))


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


def calls(graph: torch.fx.GraphModule, target: Any) -> list[torch.fx.Node]:
    return graph.graph.find_nodes(op="call_function", target=target)


def autocast(net: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return net(x)


def checkpointed(net: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(net, x, use_reentrant=False)


def channels_last(net: nn.Module, x: Tensor) -> Tensor:
    return net(x.contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize("options", [FINE, FORWARD, SATURATING], ids=["hot", "forward", "hdqt"])
@pytest.mark.parametrize("way", [None, autocast, checkpointed, channels_last, "channels_last weights"])
def test_eight_bits_are_near_exact(way: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net, x = Net(), images(4, 3, 14, 10)
    if isinstance(way, str):
        net, way = net.to(memory_format=torch.channels_last), None
    run = net if way is None else functools.partial(way, net)
    exact = gradients(run, net, x)
    compiled, trace = traced(run, options)
    found = gradients(compiled, net, x)
    ratios = {name: ratio(found[name], exact[name]) for name in exact if name != "a.bias"}  # a norm takes it out
    assert 0 < max(ratios.values()) < BOUND, ratios
    assert all(found[name].shape == exact[name].shape for name in exact)
    expected = [d for d in trace.decisions if d.gemm.role is not Role.FORWARD or options is not FINE]
    assert len(expected) >= 8 and all(d.rewritten for d in expected)
    assert not calls(trace.backward[0], aten.convolution_backward.default)
    pipeline = trace.pipelines[0]
    kept, exact_kept = (sum(t.bytes for t in kept or ()) for kept in (pipeline.saved, pipeline.saved_exact))
    if options is not SATURATING:  # x̂ of x ≥ 0 in 8 bits takes 16
        assert kept < 1.01 * exact_kept


def test_one_graph_for_all_sizes() -> None:
    torch.manual_seed(0)
    net = Net()
    compiled, trace = traced(net, FINE, dynamic=True)
    for shape in ((4, 3, 14, 10), (6, 3, 14, 10), (5, 3, 17, 13)):
        x = images(*shape)
        exact = gradients(net, net, x)
        found = gradients(compiled, net, x)
        assert max(ratio(found[name], exact[name]) for name in exact if name != "a.bias") < BOUND
    assert len(trace.backward) == 1
    decision = next(d for d in trace.decisions if d.gemm.layer == "a" and d.gemm.role is Role.GRAD_WEIGHT)
    assert "self.norm(self.a(x))" in decision.gemm.source
    assert decision.gemm.K.symbol and decision.gemm.image.symbol and "X" in str(formula(decision.scheme, decision.gemm))


@pytest.mark.parametrize("profile", ["exact", "auto"])
def test_convolutions_that_stay_exact_are_not_touched(profile: str) -> None:
    torch.manual_seed(0)
    net, x = Net(), images(4, 3, 14, 10)
    compiled, trace = traced(net, {"profile": profile})
    exact, _ = traced(net, {"profile": "exact"})
    found, expected = gradients(compiled, net, x), gradients(exact, net, x)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert len(calls(trace.backward[0], aten.convolution_backward.default)) == 3
    assert len([d for d in trace.decisions if d.gemm.window is not None]) == 9
    assert not any(d.rewritten for d in trace.decisions)


@pytest.mark.parametrize("exact", ["grad_input", "grad_weight"])
def test_the_other_gradient_stays_torchs_own(exact: str) -> None:
    """Bit for bit, though the call computes it alone; and x is not kept for a g_x that does not read it."""
    torch.manual_seed(0)
    layer, x = nn.Conv2d(6, 8, 3, stride=2, padding=1), images(4, 6, 9, 7)
    net = nn.Sequential(nn.Softplus(), layer)
    expected = gradients(traced(net, {"profile": "exact"})[0], net, x)
    compiled, trace = traced(net, {**FINE, exact: "exact"})
    found = gradients(compiled, net, x)
    same = "1.weight" if exact == "grad_weight" else "input 0"
    other = {"1.weight": "input 0", "input 0": "1.weight"}[same]
    assert torch.equal(found[same], expected[same]) and 0 < ratio(found[other], expected[other]) < BOUND
    (call,) = calls(trace.backward[0], aten.convolution_backward.default)
    assert call.args[-1] == [exact == "grad_input", exact == "grad_weight", exact == "grad_weight"]
    kept = {tuple(n.meta["val"].shape) for n in trace.forward[0].graph.find_nodes(op="output")[0].all_input_nodes}
    assert ratio(found["1.bias"], expected["1.bias"]) < 1e-6
    reads = call.args[1].op == "placeholder" or "softplus" in call.args[1].name  # type: ignore[union-attr]
    assert reads is (exact == "grad_weight") and (4, 6, 9, 7) in kept  # softplus reads its own input


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Conv2d(8, 8, 3, groups=2), "a grouped convolution is left alone"),
        (lambda: nn.Conv2d(8, 8, 3, groups=8), "a depthwise convolution is left alone"),
        (lambda: nn.ConvTranspose2d(8, 6, 3, stride=2), "a transposed convolution is left alone"),
    ],
    ids=["grouped", "depthwise", "transposed"],
)
def test_what_is_left_alone_says_so(make: Callable[[], nn.Module], reason: str) -> None:
    torch.manual_seed(0)
    layer, x = make(), images(2, 8, 7, 6)
    expected = gradients(layer, layer, x)
    compiled, trace = traced(layer, FORWARD)
    found = gradients(compiled, layer, x)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert [d.reason for d in trace.decisions] == [reason] * 3 and not any(d.rewritten for d in trace.decisions)
    multiplied = layer(x).numel() * layer.weight[0].numel() if "trans" not in reason else x.numel() * 6 * 9
    assert {d.gemm.flops for d in trace.decisions} == {2 * multiplied}


def test_frozen_and_first_layers_have_no_product_for_what_nobody_wants() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 3), nn.Tanh(), nn.Conv2d(8, 4, 1))
    net[2].requires_grad_(False)
    compiled, trace = traced(net, FINE)
    compiled(torch.randn(2, 3, 9, 9)).sum().backward()
    assert trace.roles("0") == [Role.FORWARD, Role.GRAD_WEIGHT]
    assert trace.roles("2") == [Role.FORWARD, Role.GRAD_INPUT]
    assert trace.roles("4") == [Role.FORWARD, Role.GRAD_INPUT, Role.GRAD_WEIGHT]


@pytest.mark.parametrize(("stride", "columns"), [(1, False), (2, True), (3, True)])
def test_the_smaller_of_columns_and_x_is_kept(stride: int, columns: bool) -> None:
    """3×3 under rank 8 of 16 in 8 bits: 9/8 of float32's x at stride 1, 9/32 at 2, 1/8 at 3."""
    net = nn.Sequential(nn.Conv2d(4, 16, 1), nn.Softplus(), nn.Conv2d(16, 8, 3, stride=stride, padding=1))
    compiled, trace = traced(net, {"profile": "hot"})
    compiled(images(4, 4, 12, 12)).sum().backward()
    decision = next(d for d in trace.decisions if d.gemm.layer == "2" and d.gemm.role is Role.GRAD_WEIGHT)
    kept = {tuple(n.meta["val"].shape) for n in trace.forward[0].graph.find_nodes(op="output")[0].all_input_nodes}
    tokens = 4 * (11 // stride + 1) ** 2
    codes = (144, -(-tokens // 2 // 16) * 16)  # lines are padded to 16
    assert (codes in kept) is columns
    x = 4 * 16 * 144 * 4
    assert decision.exact_cost.saved_bytes == x
    assert decision.cost.saved_bytes == (144 * codes[1] + 4 * 144 if columns else x)
    assert ("the forward keeps its columns" in decision.reason) is columns
    assert ("the forward keeps x" in decision.reason) is not columns


def test_unfolding_is_priced() -> None:
    """As a linear layer of the same product, and the bytes of unfolding, folding and of g_y as rows beside it."""
    profile, layer = profile_for("cpu"), nn.Conv2d(32, 64, 3, padding=1)
    compiled, trace = traced(nn.Sequential(nn.Tanh(), layer), {"profile": "hot"})
    compiled(images(2, 32, 16, 16)).sum().backward()
    linear, linear_trace = traced(nn.Sequential(nn.Tanh(), nn.Linear(288, 64)), {"profile": "hot"})
    linear(images(512, 288)).sum().backward()
    image, unfolded, rows = 2 * 32 * 256 * 4, 512 * 288 * 4, 512 * 64 * 4
    for role in (Role.GRAD_INPUT, Role.GRAD_WEIGHT):
        (found,), (plain,) = (
            [d for d in t.of(role) if d.gemm.M == trace.of(role)[0].gemm.M] for t in (trace, linear_trace)
        )
        # g_y is written as rows once for both gradients, which share the price.
        more = (image + unfolded + rows) / profile.bandwidth + 1.5 * profile.launch
        assert found.cost.seconds - plain.cost.seconds == pytest.approx(more, rel=1e-6)
        assert found.exact_cost.seconds <= plain.exact_cost.seconds  # x is read as it is


def test_prices_decide_where_they_may() -> None:
    """A device whose integer units are far faster than its others unfolds even so; one without does not."""
    gemms = traced(nn.Conv2d(256, 256, 3, padding=1), {"profile": "exact"})
    gemms[0](images(2, 256, 16, 16)).sum().backward()
    products = tuple(d.gemm for d in gemms[1].decisions)
    chooser = functools.partial(ChooseSchemes, Policy.resolve({"profile": "auto"}, environ={}, directory="/"))
    chosen = {}
    for name in ("cpu_avx2", "cpu_amx"):
        decisions = chooser(profile_for("cpu", name)).decide(products)
        chosen[name] = {str(d.gemm.role) for d in decisions if d.rewritten}
    assert "grad_input" in chosen["cpu_amx"] and chosen["cpu_avx2"] <= chosen["cpu_amx"]


def test_the_patches_of_a_vision_transformer_are_a_product() -> None:
    embed = nn.Sequential(nn.Conv2d(3, 24, 4, stride=4), nn.Flatten(2))
    compiled, trace = traced(embed, {"profile": "hot"})
    compiled(torch.randn(4, 3, 16, 16)).sum().backward()
    report = Report(trace.pipelines[0].plan)  # type: ignore[arg-type]
    assert "0, convolution 4×4, stride 4" in report.text() and "64×24×48" in report.text()
    plan = trace.pipelines[0].plan
    assert plan is not None and Plan.from_json(plan.to_json()) == plan


def test_convolutions_are_calibrated() -> None:
    torch.manual_seed(0)
    net, batch = Net(), torch.randn(4, 3, 14, 10)
    calibration = calibrate(net, [batch], lambda net, x: net(x).square().mean())
    seen = {(product.layer, product.role) for product in calibration.products}
    assert {(layer, role) for layer in "bc" for role in (Role.GRAD_INPUT, Role.GRAD_WEIGHT)} <= seen
    compiled, trace = traced(net, {"profile": "hot", "calibration": calibration})
    compiled(batch).square().mean().backward()
    decisions = [d for d in trace.decisions if d.gemm.window is not None and d.rewritten]
    assert len(decisions) == 5 and all(d.cost.error is not None for d in decisions)
    measured = [(d.measured_error, d.cost.error) for d in decisions if d.measured_error is not None]
    assert measured and all(0.5 < found / predicted < 2 for found, predicted in measured)  # type: ignore[operator]
