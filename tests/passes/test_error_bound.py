"""Errors along a chain of layers: estimated and bounded from those of the single products, against the real ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import traced
from torch import nn

import hadamard_fx
from hadamard_fx.passes.error_bound import ResultError, result_errors, summary
from hadamard_fx.passes.joint_graph import JointGraph


class Watch:
    """Keeps what ``result_errors`` says of every graph that is compiled."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: list[tuple[ResultError, ...]] = []
        from hadamard_fx.passes import manager

        def watched(joint: JointGraph, plan: Any, calibration: Any) -> tuple[ResultError, ...]:
            self.found.append(result_errors(joint, plan, calibration))
            return self.found[-1]

        monkeypatch.setattr(manager, "result_errors", watched)


def gradients(function: Any, model: nn.Module, x: torch.Tensor, independent: bool = True) -> list[torch.Tensor]:
    model.zero_grad()
    y = function(x)
    if independent:  # what comes back knows nothing of what went in
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)))
    else:
        y.square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("depth", [2, 5])
def test_estimate_of_a_chain(depth, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(128, 128, bias=False) for _ in range(depth)))
    x = torch.randn(256, 128)
    exact = gradients(model, model, x)
    watch = Watch(monkeypatch)
    options = {"grad_input": {"bits": 4, "scale": "token"}, "grad_weight": "exact"}
    compiled, _ = traced(model, options)
    real = [(g - e).norm() / e.norm() for g, e in zip(gradients(compiled, model, x), exact, strict=True)]
    estimated = [error for error in watch.found[-1] if error.gradient]
    assert len(estimated) == depth
    for own, error in zip(
        real[:-1], estimated[:-1], strict=True
    ):  # the last layer's gradient passes no rewritten product
        assert float(own) == pytest.approx(error.expected, rel=0.15)
        assert float(own) < 1.05 * error.bound  # with one product on the way there is nothing to add up
    assert estimated[-1].bound == 0 and float(real[-1]) < 1e-5
    assert [e.expected for e in estimated] == sorted((e.expected for e in estimated), reverse=True)


def result_of(model: nn.Module, options: dict[str, Any], x: torch.Tensor, monkeypatch: Any) -> tuple[ResultError, ...]:
    """Without the calibration among the options."""
    watch = Watch(monkeypatch)
    gradients(traced(model, {**options, "calibration": None})[0], model, x, independent=False)
    return watch.found[-1]


def test_a_calibration_knows_how_coherently_operands_meet(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(128, 128, bias=False) for _ in range(3)))
    x = torch.randn(256, 128)
    exact = gradients(model, model, x, independent=False)
    calibration = hadamard_fx.calibrate(model, [x], lambda model, x: model(x).square().sum())
    watch = Watch(monkeypatch)
    options = {"grad_input": {"bits": 4, "scale": "token"}, "grad_weight": "exact", "calibration": calibration}
    found = gradients(traced(model, options)[0], model, x, independent=False)
    real = [float((g - e).norm() / e.norm()) for g, e in zip(found, exact, strict=True)]
    expected = [error.expected for error in watch.found[-1] if error.gradient]
    uncalibrated = [error.expected for error in result_of(model, options, x, monkeypatch) if error.gradient]
    for own, calibrated, gaussian in zip(real[:2], expected, uncalibrated, strict=False):
        assert 1 / 1.6 < own / calibrated < 1.6  # tokens whose gradient is large have large inputs, too
        assert abs(own - calibrated) < abs(own - gaussian)


def test_an_error_of_the_forward_reaches_the_gradients(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Tanh(), nn.Linear(64, 64, bias=False))
    watch = Watch(monkeypatch)
    exact_backward = {"forward": "hadamard8", "grad_input": "exact", "grad_weight": "exact"}
    gradients(traced(model, exact_backward)[0], model, torch.randn(64, 64))
    told = summary(watch.found[-1])
    assert 0 < told["expected error of forward, at most"] <= told["error bound of forward"]
    assert told["error bound of gradients"] > 0


def test_an_exact_graph_has_no_error(monkeypatch):
    model = nn.Linear(64, 64)
    watch = Watch(monkeypatch)
    gradients(traced(model, {"profile": "exact"})[0], model, torch.randn(32, 64))
    assert all(error.bound == 0 for error in watch.found[-1])
    assert summary(watch.found[-1]) == {}
