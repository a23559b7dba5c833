"""Measured times: every product that runs is found, what is not found is said, and nothing of the user's is changed."""

from __future__ import annotations

import json

import pytest
import torch
from made_reports import report_of
from torch import nn

import hadamard_fx
from hadamard_fx.cli import main
from hadamard_fx.report import Report
from hadamard_fx.report.measure import measured_of


def explained(model, x, **arguments):
    explain = hadamard_fx.explain(model, loss=lambda y: y.square().mean(), measure=True, **arguments)
    (report,) = explain(x).reports
    return report


@pytest.mark.parametrize("profile", ["hot", "exact"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_every_product_is_found(profile, dynamic):
    model = nn.Sequential(nn.Linear(512, 1024), nn.GELU(), nn.Linear(1024, 4))
    report = explained(model, torch.randn(512, 512), options={"profile": profile}, dynamic=dynamic)
    assert report.measured is not None
    times = dict(report.measured.seconds)
    assert list(times) == [decision.gemm.node for decision in report.plan.decisions]
    assert report.measured.unmatched == ()
    assert min(times.values()) > 0
    large, small = (times[d.gemm.node] for d in report.plan.decisions if d.gemm.role == "forward")
    assert large > small  # 256 times the work
    assert Report.from_json(report.to_json()) == report


def test_nothing_of_the_user_is_changed():
    model = nn.Linear(64, 64)
    model.weight.grad = torch.ones(64, 64)
    before = [p.detach().clone() for p in model.parameters()]
    explained(model, torch.randn(64, 64))
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert torch.equal(model.weight.grad, torch.ones(64, 64))
    assert model.bias.grad is None


def test_without_a_backward():
    (report,) = hadamard_fx.explain(nn.Linear(8, 8).requires_grad_(False), measure=True)(torch.randn(4, 8)).reports
    assert report.measured is not None
    assert len(report.measured.seconds) == 1


def test_several_graphs_are_told_apart():
    def model(x):
        y = x @ weights[0]
        torch._dynamo.graph_break()
        return y @ weights[1]

    weights = [nn.Parameter(torch.randn(32, 32)) for _ in range(2)]
    reports = hadamard_fx.explain(model, measure=True)(torch.randn(32, 32)).reports
    assert len(reports) == 2
    for report in reports:
        assert report.measured is not None
        assert len(report.measured.seconds) == len(report.plan.decisions)


def test_what_is_not_found_is_said():
    plan = report_of(3).plan
    found = measured_of({(0, "mm_1"): 1e-3, (0, "quantize_both"): 2e-3, (1, "mm_0"): 9.0}, 0, plan)
    assert found.seconds == (("mm_1", 1e-3),)
    assert found.unmatched == (("quantize_both", 2e-3),)
    text = report_of().text(details=True, width=140)
    assert "33.0 ms, 11 of 12 products found in the run; 1.00 ms in kernels of no single product" in text
    assert text.count("not found in the run") == 1


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "report_measured.py").write_text(
        "import torch\ndef make():\n    return torch.nn.Linear(16, 16), torch.randn(16, 16)\n"
    )
    assert main(["explain", "report_measured:make", "--measure", "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["measured"]["runs"] == 5
