"""``calibrate``: what it records, that it leaves the model alone, its file, and what it refuses."""

from __future__ import annotations

import copy
import json
import os
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

import hadamard_fx
from hadamard_fx import Calibration
from hadamard_fx.cost_model.error import relative_error
from hadamard_fx.cost_model.statistics import RANKS
from hadamard_fx.errors import CalibrationError, OptionError
from hadamard_fx.kernels.walsh import walsh_reference
from hadamard_fx.plan import Hadamard, LowRank, Role

TOKEN = Hadamard(carrier="int8", group=0)


class Net(nn.Module):
    """Two layers, one of them used twice, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(32, 32)
        self.frozen = nn.Linear(32, 32).requires_grad_(False)
        self.norm = nn.BatchNorm1d(32)
        self.head = nn.Linear(32, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.inner(F.relu(self.inner(x))))
        return self.head(F.dropout(self.norm(self.frozen(x)), 0.1))


def square(model: Any, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean()


def batches(count: int = 2, tokens: int = 64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(tokens, 32, generator=generator) for _ in range(count)]


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="module")
def calibration(net: Net) -> Calibration:
    return hadamard_fx.calibrate(net, batches(), square)


def by_key(calibration: Calibration) -> dict[tuple[str, Role], Any]:
    return {(product.layer, product.role): product for product in calibration.products}


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
    scheme = LowRank(bits=8, rank=16, group=0)
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
    from hadamard_fx.calibration import product_sums

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
    assert report.reports[0].plan.rewrites()
    assert Calibration.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_calibrating_again_and_again_compiles_every_time(net):
    limit = torch._dynamo.config.recompile_limit
    for _ in range(limit + 2):
        assert hadamard_fx.calibrate(net, batches(1), square).products


def test_a_compiled_model_is_calibrated_as_what_it_wraps(net, calibration):
    found = hadamard_fx.calibrate(torch.compile(net, backend="eager"), batches(1), square)
    assert set(by_key(found)) == set(by_key(calibration))


def test_the_file_comes_back(calibration, tmp_path):
    path = calibration.save(tmp_path / "deep" / "calibration.json")
    again = Calibration.load(path)
    assert again == calibration and again.digest() == calibration.digest() and hash(again) == hash(calibration)
    assert [entry.name for entry in path.parent.iterdir()] == ["calibration.json"]


def test_the_digest_is_the_same_in_another_process(calibration, tmp_path):
    import subprocess
    import sys

    path = calibration.save(tmp_path / "calibration.json")
    script = "import sys, hadamard_fx; print(hadamard_fx.Calibration.load(sys.argv[1]).digest())"
    run = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == calibration.digest()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the administrator may write anywhere")
def test_an_unwritable_folder_is_told(calibration, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CalibrationError, match="save it elsewhere"):
        calibration.save(tmp_path / "calibration.json")


def test_a_folder_that_is_a_file_is_told_and_the_old_file_stays(calibration, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CalibrationError, match="save it elsewhere"):
        calibration.save(tmp_path / "file" / "calibration.json")
    path = calibration.save(tmp_path / "calibration.json")
    before = path.read_bytes()

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(CalibrationError, match="No space left"):
        calibration.save(path)
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["calibration.json", "file"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "truncated"),
        (lambda text: "", "truncated"),
        (lambda text: "[1, 2]", "is no calibration: schema 'list'"),
        (
            lambda text: '{"schema": "hadamard_fx.report", "version": 1}',
            "is no calibration: schema 'hadamard_fx.report'",
        ),
        (lambda text: text.replace('"version": 1', '"version": 99', 1), "schema version 99"),
        (lambda text: text.replace('"coherence"', '"cohesion"', 1), "is damaged: KeyError"),
        (lambda text: text.replace('"role": "forward"', '"role": "sideways"', 1), "is damaged"),
        (lambda text: text.replace('"kind": "hadamard"', '"kind": "mine"', 1), "import the module that declares"),
    ],
    ids=["half", "empty", "list", "report", "version", "field", "role", "scheme"],
)
def test_a_file_that_is_none_of_ours_is_refused(calibration, tmp_path, change, message):
    path = tmp_path / "calibration.json"
    path.write_text(change(json.dumps(calibration.to_json())))
    with pytest.raises(CalibrationError, match=message):
        Calibration.load(path)
    with pytest.raises(CalibrationError, match="calibration"):
        hadamard_fx.explain(nn.Linear(4, 4), options={"calibration": str(path)})(torch.ones(2, 4))


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(CalibrationError, match=r"cannot read the calibration .*No such file"):
        hadamard_fx.explain(nn.Linear(4, 4), options={"calibration": tmp_path / "none.json"})(torch.ones(2, 4))


@pytest.mark.parametrize("value", [3, True, "", object()], ids=repr)
def test_an_option_that_is_no_calibration_is_refused(value):
    with pytest.raises(OptionError, match="calibrate returned"):
        hadamard_fx.Policy.resolve({"calibration": value})


def test_a_calibration_of_another_model_is_refused_and_the_layers_are_named(net, calibration):
    options = {"profile": "hot", "calibration": calibration}

    class Wider(Net):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(32, 24)

    with pytest.raises(CalibrationError, match="head: grad_input of 8 × 32 there, of 24 × 32 here") as caught:
        hadamard_fx.explain(Wider(), loss=lambda y: y.square().mean(), options=options)(batches()[0])
    assert "inner" not in str(caught.value)

    class Longer(Net):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(super().forward(x))

    with pytest.raises(CalibrationError, match="last: it has no such layer"):
        hadamard_fx.explain(Longer(), loss=lambda y: y.square().mean(), options=options)(batches()[0])

    thawed = copy.deepcopy(net)
    thawed.frozen.requires_grad_(True)
    with pytest.raises(CalibrationError, match="frozen: it saw forward, grad_input only, not grad_weight"):
        hadamard_fx.explain(thawed, loss=lambda y: y.square().mean(), options=options)(batches()[0])


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda model, batch: model(batch), r"it returned a tensor of shape \[64, 8\]"),
        (lambda model, batch: float(model(batch).sum()), "it returned a float"),
        (lambda model, batch: model(batch).sum().detach(), r"of shape \[\] without a gradient"),
        (lambda model, batch: sum(p.sum() for p in model.parameters()), "must call the model"),
        (lambda model, batch: model(batch * float("nan")).sum(), "layer 'inner#0' is not finite"),
    ],
    ids=["no scalar", "no tensor", "detached", "never called", "nan"],
)
def test_a_loss_that_cannot_be_differentiated_is_refused(net, loss, message):
    with pytest.raises(CalibrationError, match=message):
        hadamard_fx.calibrate(net, batches(1), loss)


def test_no_batch_and_nothing_to_train_are_refused(net):
    with pytest.raises(CalibrationError, match="no batch"):
        hadamard_fx.calibrate(net, iter(()), square)
    with pytest.raises(CalibrationError, match=r"must be an nn\.Module"):
        hadamard_fx.calibrate(lambda x: x, batches(1), square)
    with pytest.raises(CalibrationError, match="linear layers"):
        hadamard_fx.calibrate(nn.Linear(32, 8).double(), [batch.double() for batch in batches(1)], square)
    with pytest.raises(CalibrationError, match="no parameter"):
        hadamard_fx.calibrate(nn.Linear(4, 4).requires_grad_(False), batches(1), square)


def test_an_error_of_the_model_is_its_own(net):
    with pytest.raises(RuntimeError, match=r"(?s)linear.*32, 32"):
        hadamard_fx.calibrate(net, [torch.randn(4, 31)], square)


def test_a_progress_bar_is_shown_where_asked_for(net, capsys):
    hadamard_fx.calibrate(net, batches(1), square, progress=True)
    assert "calibrating" in capsys.readouterr().err
    hadamard_fx.calibrate(net, batches(1), square)
    assert capsys.readouterr().err == ""


def test_the_hash_enters_the_compile_key(net, calibration, tmp_path):
    from hadamard_fx.backend import _digest
    from hadamard_fx.cost_model.device_profile import profile_for
    from hadamard_fx.passes.manager import Pipeline

    other = hadamard_fx.calibrate(net, [3 * batch for batch in batches()], square)
    path = calibration.save(tmp_path / "calibration.json")
    keys = []
    for content in (calibration, other, calibration):
        content.save(path)
        keys.append(_digest(Pipeline(hadamard_fx.Policy.resolve({"calibration": path}), profile_for("cpu"), ())))
    assert keys[0] == keys[2] != keys[1]


def test_it_is_set_by_a_file_or_the_environment_too(calibration, tmp_path):
    path = calibration.save(tmp_path / "calibration.json")
    policy = hadamard_fx.Policy.resolve(None, environ={"HADAMARD_FX_CALIBRATION": str(path)}, directory=tmp_path)
    assert policy.calibration == str(path)
    (tmp_path / "hadamard.toml").write_text(f'calibration = "{path}"\n')
    policy = hadamard_fx.Policy.resolve(None, environ={}, directory=tmp_path)
    assert policy.calibration == str(path)
    assert Path(dict(policy.settings)["calibration"][0]) == path
