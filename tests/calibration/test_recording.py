"""``calibrate``: what it records, and that it leaves the model alone."""

from __future__ import annotations

import copy
import json
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from small_net import batches, by_key, square
from torch import nn

import hadamard_fx
from hadamard_fx import Calibration
from hadamard_fx.calibration import product_sums
from hadamard_fx.cost_model.error import relative_error
from hadamard_fx.cost_model.statistics import RANKS
from hadamard_fx.kernels.walsh import walsh_reference
from hadamard_fx.plan import LowRank, Role


def test_products_have_the_names_of_the_report(net, calibration):
    report = hadamard_fx.explain(net, loss=lambda y: y.square().mean(), options={"profile": "exact"})(batches()[0])
    gemms = [d.gemm for r in report.reports for d in r.plan.decisions]
    assert {(gemm.layer, gemm.role) for gemm in gemms} == set(by_key(calibration))
    assert ("frozen", Role.GRAD_INPUT) in by_key(calibration)
    assert ("frozen", Role.GRAD_WEIGHT) not in by_key(calibration)
    assert {layer for layer, _ in by_key(calibration)} >= {"inner#0", "inner#1", "head"}
    calibration.check(gemms)


def test_statistics_are_those_of_the_operands():
    torch.manual_seed(0)
    layer = nn.Linear(64, 48, bias=False)
    x, coming = torch.randn(128, 64) * torch.linspace(0.1, 3, 128)[:, None], torch.randn(128, 48).abs()
    found = hadamard_fx.calibrate(layer, [x], lambda model, batch: (model(batch) * coming).sum())
    statistics = by_key(found)["", Role.GRAD_WEIGHT].statistics if ("", Role.GRAD_WEIGHT) in by_key(found) else None
    if statistics is None:
        (statistics,) = [p.statistics for p in found.products if p.role is Role.GRAD_WEIGHT]
    gradient, saved = statistics.left, statistics.right
    assert gradient.rms == pytest.approx(float(coming.square().mean().sqrt()), rel=1e-4)
    assert saved.maximum == pytest.approx(float(x.abs().max()), rel=1e-4)
    assert gradient.nonnegative and not saved.nonnegative
    lines = x.t()
    logs = lines.square().mean(1).sqrt().log()
    assert saved.spread == pytest.approx(float(logs.std(unbiased=False)), rel=1e-3)

    v = (lines.double().view(64, 8, 16) @ walsh_reference(16)) / 4  # by sequency
    energy = v.square().sum((0, 1))
    assert saved.kept == pytest.approx([float(energy[:r].sum() / energy.sum()) for r in RANKS], rel=1e-4)
    shapes = dict(saved.shapes)
    cut = v[:, :, :8].flatten(1)
    peak = (cut.abs().amax(1).square().mean() / cut.square().mean()).sqrt()
    assert shapes[16, 8, "line"].peak == pytest.approx(float(peak), rel=1e-4)
    tensor = v.abs().max() / v.square().mean().sqrt()
    assert shapes[16, 16, "tensor"].peak == pytest.approx(float(tensor), rel=1e-4)
    assert shapes[16, 16, "tensor"].flatness == pytest.approx(
        float(v.abs().mean() / v.square().mean().sqrt()), rel=1e-4
    )

    out = coming.t() @ x
    independent = coming.square().sum() * x.square().sum() / 128
    assert statistics.coherence == pytest.approx(float(out.square().sum() / independent), rel=1e-3)
    g = (coming.t().double().view(48, 8, 16) @ walsh_reference(16)) / 4
    kept = torch.einsum("obs,ibs->oi", g[:, :, :8], v[:, :, :8])
    dropped = (out - kept).square().sum() / out.square().sum()
    assert statistics.dropped[RANKS.index(8)] == pytest.approx(float(dropped), rel=1e-3)


def test_measured_errors_are_those_of_the_compiled_product():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 32, bias=False))
    x, target = torch.randn(256, 64), torch.randn(256, 32)

    def loss(model: Any, batch: torch.Tensor) -> torch.Tensor:
        return (model(batch) * target).sum()

    product = by_key(hadamard_fx.calibrate(model, [x], loss))["0", Role.GRAD_WEIGHT]
    scheme = LowRank(bits=8, rank=16, group=0, signs="none")
    loss(model, x).backward()
    exact = model[0].weight.grad.clone()
    model.zero_grad()
    options = {"profile": "exact", "overrides": {"0": {"grad_weight": {"rank": 16}}}}
    loss(torch.compile(model, backend="hadamard", options=options), x).backward()
    error = float((model[0].weight.grad - exact).norm() / exact.norm())
    assert product.error(scheme) == pytest.approx(error, rel=0.1)


def test_predictions_are_near_what_was_measured(net, calibration):
    report = hadamard_fx.explain(net, loss=lambda y: y.square().mean(), options={"profile": "exact"})(batches()[0])
    off = []
    for decision in report.reports[0].plan.decisions:
        product = calibration.product(decision.gemm)
        for scheme, measured in product.measured:
            off.append(abs(relative_error(scheme, decision.gemm, product.statistics) / measured - 1))
    assert len(off) > 30
    assert sorted(off)[len(off) // 2] < 0.15


def test_the_model_is_left_as_it_was(net):
    before = copy.deepcopy(net.state_dict())
    modes = {name: module.training for name, module in net.named_modules()}
    net.frozen.eval()
    net.inner.weight.grad = torch.ones_like(net.inner.weight)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    hadamard_fx.calibrate(net, batches(1), square)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(net.inner.weight.grad, torch.ones_like(net.inner.weight)) and net.head.weight.grad is None
    assert not net.frozen.training
    net.frozen.train()
    net.inner.weight.grad = None
    assert {name: module.training for name, module in net.named_modules()} == modes


def test_no_activation_is_kept():
    seen: list[weakref.ref[torch.Tensor]] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(32, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x)

    def loss(model: Any, batch: torch.Tensor) -> torch.Tensor:
        out = model(batch)
        seen.append(weakref.ref(out))
        return out.square().mean()

    hadamard_fx.calibrate(Watched(), batches(3), loss)
    assert len(seen) == 3 and all(reference() is None for reference in seen)


def test_autocast_and_several_sizes_of_a_batch():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def loss(model: Any, batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(batch).float().square().mean()

    found = hadamard_fx.calibrate(model, [*batches(1), *batches(1, tokens=40), *batches(1, tokens=7)], loss)
    assert found.batches == 3
    for product in found.products:
        assert product.statistics is not None and dict(product.measured)
    options = {"profile": "hot", "calibration": found}

    def forward(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(x).float()

    report = hadamard_fx.explain(forward, loss=lambda y: y.square().mean(), options=options)(batches()[0])
    assert all(d.gemm.dtype == "bfloat16" for d in report.reports[0].plan.decisions)


def test_a_scheme_that_overflows_has_an_error_that_a_file_can_hold(tmp_path, monkeypatch):

    monkeypatch.setattr(product_sums, "single_product", lambda *_: lambda left, right: (left @ right) * float("inf"))
    found = hadamard_fx.calibrate(nn.Linear(32, 32), batches(1), square)
    assert all(error == product_sums.OVERFLOWN for product in found.products for _, error in product.measured)
    assert Calibration.load(found.save(tmp_path / "calibration.json")) == found


def test_checkpointing_graph_breaks_and_dynamic_shapes():
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.tied = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 32, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            block = torch.utils.checkpoint.checkpoint(lambda x: self.down(F.gelu(self.up(x))), x, use_reentrant=False)
            torch._dynamo.graph_break()
            return F.linear(self.tied(x + block), self.tied.weight)

    model = Broken()
    found = by_key(hadamard_fx.calibrate(model, batches(2), square))
    assert {layer for layer, _ in found} == {"up", "down", "tied#0", "tied#1"}
    assert all(product.statistics is not None for product in found.values())
    known = Calibration(tuple(found.values()), 2)
    options = {"profile": "hot", "calibration": known}
    before = len(hadamard_fx.reports())
    compiled = torch.compile(model, backend="hadamard", options=options, dynamic=True)
    square(compiled, torch.randn(48, 32)).backward()
    plans = [report.plan for report in hadamard_fx.reports()[before:]]
    assert len(plans) == 2 and all(plan.rewrites() for plan in plans)
    assert any(d.gemm.M.symbol for plan in plans for d in plan.rewrites())


def test_a_gradient_that_is_zero_leaves_nothing_to_measure():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    found = hadamard_fx.calibrate(model, batches(1), lambda model, batch: (model(batch) * 0).sum())
    products = by_key(found)
    assert products["1", Role.GRAD_WEIGHT].statistics is None
    assert products["1", Role.FORWARD].statistics is not None
    report = hadamard_fx.explain(model, loss=lambda y: y.sum(), options={"profile": "hot", "calibration": found})(
        batches()[0]
    )
    zero = [d for d in report.reports[0].plan.rewrites() if d.gemm.layer == "1"]
    assert zero and all("an operand was zero in every batch" in d.reason for d in zero)
    assert Calibration.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_calibrating_again_and_again_compiles_every_time(net):
    limit = torch._dynamo.config.recompile_limit
    for _ in range(limit + 2):
        assert hadamard_fx.calibrate(net, batches(1), square).products


def test_a_compiled_model_is_calibrated_as_what_it_wraps(net, calibration):
    found = hadamard_fx.calibrate(torch.compile(net, backend="eager"), batches(1), square)
    assert set(by_key(found)) == set(by_key(calibration))


def test_a_progress_bar_is_shown_where_asked_for(net, capsys):
    hadamard_fx.calibrate(net, batches(1), square, progress=True)
    assert "calibrating" in capsys.readouterr().err
    hadamard_fx.calibrate(net, batches(1), square)
    assert capsys.readouterr().err == ""
