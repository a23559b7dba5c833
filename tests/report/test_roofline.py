"""The bytes of the roofline are those that the prices count."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hadamard_fx
from hadamard_fx.cost_model.device_profile import profile_for
from hadamard_fx.cost_model.roofline import exact_traffic
from hadamard_fx.kernels import quantize_rows, quantize_weight, quantized_mm
from hadamard_fx.report.roofline import roofline_of
from hadamard_fx.scheme import Hadamard


def test_bytes_are_those_of_the_kernels():
    explain = hadamard_fx.explain(nn.Linear(128, 64), loss=lambda y: y.sum(), options={"profile": "hot"})
    (report,) = explain(torch.randn(256, 128, requires_grad=True)).reports
    moved = {node: (exact, chosen) for node, exact, chosen in report.roofline.moved}
    assert list(moved) == [decision.gemm.node for decision in report.plan.decisions]
    for decision in report.plan.decisions:
        assert moved[decision.gemm.node][0] == exact_traffic(decision.gemm).bytes
    (grad_input,) = (d for d in report.plan.rewrites() if isinstance(d.scheme, Hadamard))
    launches = (
        quantize_rows.traffic(256, 64, 16, 4, group=0),
        quantize_weight.traffic(64, 128, 16, 4),
        quantized_mm.traffic(256, 128, 64, grad_input.scheme.carrier, 4, 0),
    )
    assert moved[grad_input.gemm.node][1] == pytest.approx(sum(launch.bytes for launch in launches))


def test_figures_are_those_of_the_profile():
    (report,) = hadamard_fx.explain(nn.Linear(8, 8).requires_grad_(False))(torch.randn(4, 8)).reports
    profile = profile_for("cpu")
    again = roofline_of(report.plan, profile)
    assert again == report.roofline
    assert (again.bandwidth, again.rates) == (profile.bandwidth, dict(profile.rates))


def test_an_empty_product_has_no_place():
    (report,) = hadamard_fx.explain(nn.Linear(8, 8).requires_grad_(False))(torch.randn(0, 8)).reports
    assert report.roofline.moved == ()
    report.to_html()
