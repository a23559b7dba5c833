"""What ``calibrate`` and a compilation with a calibration refuse."""

from __future__ import annotations

import copy

import pytest
import torch
from small_net import Net, batches, square
from torch import nn

import hadamard_fx
from hadamard_fx.errors import CalibrationError, OptionError


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
