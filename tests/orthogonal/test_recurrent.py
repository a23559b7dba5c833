"""The net against its equations, both trainings, and its refusals."""

from __future__ import annotations

import pytest
import torch

from hadamard_fx.errors import OptionError
from hadamard_fx.orthogonal.projunn import ProjUNN
from hadamard_fx.orthogonal.quantizers import RANGES, minmax_range, quantize
from hadamard_fx.orthogonal.recurrent import ORNNConfig, OrthogonalRNN, modrelu, optimizers
from hadamard_fx.orthogonal.tracking import orthogonality

TRAININGS = pytest.mark.parametrize("training", ["bjorck", "projunn"])


def made(seed: int = 0, **changes: object) -> OrthogonalRNN:
    torch.manual_seed(seed)
    return OrthogonalRNN(ORNNConfig(**{"inputs": 3, "hidden": 12, "outputs": 5, **changes}))  # type: ignore[arg-type]


@TRAININGS
@pytest.mark.parametrize("activation", ["relu", "modrelu"])
@pytest.mark.parametrize("bits", [None, 4])
def test_equations(training, activation, bits):
    model = made(training=training, activation=activation, bits=bits, every_step=True).eval()
    if activation == "modrelu":
        torch.nn.init.uniform_(model.threshold, -0.3, 0.1)
    x = torch.randn(4, 7, 3)
    w, u = model.recurrent.detach(), model.input.detach()
    h, wanted = torch.zeros(4, 12), []
    for t in range(7):
        z = h @ w.T + x[:, t] @ u.T
        h = z.clamp_min(0) if activation == "relu" else z.sign() * (z.abs() + model.threshold).clamp_min(0)
        wanted.append(h @ model.output.weight.T + model.output.bias)
    torch.testing.assert_close(model(x), torch.stack(wanted, 1))


def test_last_step_only():
    every, last = made(every_step=True), made()
    x = torch.randn(2, 5, 3)
    torch.testing.assert_close(last(x), every(x)[:, -1])


@TRAININGS
def test_what_is_quantised(training):
    model = made(training=training, bits=3).eval()
    assert len(model.recurrent.unique()) <= 8 and len(model.input.unique()) <= 8
    assert len(model.output.weight.unique()) > 8
    plain = made(training=training).eval()
    torch.testing.assert_close(model.recurrent, quantize(plain.recurrent, minmax_range(plain.recurrent), 3))
    assert orthogonality(plain.recurrent).gap < 1e-5


@TRAININGS
@pytest.mark.parametrize("range_name", RANGES)
def test_training_lowers_the_loss(training, range_name):
    model = made(training=training, bits=4, range=range_name, per_channel=True, hidden=24)
    steppers = optimizers(model, lr=0.01)
    x = torch.randn(64, 6, 3, generator=torch.Generator().manual_seed(1))
    target = (x[:, 0, 0] > 0).long()  # the first of six steps decides
    losses = []
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(x), target)
        for stepper in steppers:
            stepper.zero_grad()
        loss.backward()
        for stepper in steppers:
            stepper.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    if training == "projunn":
        assert orthogonality(model.recurrent_parameter()).gap < 1e-5


def test_projunn_takes_the_gradient_at_the_quantised_matrix():
    model = made(training="projunn", bits=3)
    x = torch.randn(4, 5, 3)
    model(x).square().sum().backward()
    quantised = model.recurrent.detach().clone().requires_grad_()
    h = torch.zeros(4, 12)
    for t in range(5):
        h = torch.relu(h @ quantised.T + x[:, t] @ model.input.detach().T)
    (wanted,) = torch.autograd.grad(model.output(h).square().sum(), quantised)
    torch.testing.assert_close(model.recurrent_parameter().grad, wanted)


def test_optimizers_share_the_parameters_out():
    for training, kinds in (("bjorck", [torch.optim.Adam]), ("projunn", [torch.optim.Adam, ProjUNN])):
        model = made(training=training, bits=4, range="lsq", activation="modrelu")
        steppers = optimizers(model, lr=0.01, variant="T")
        assert [type(stepper) for stepper in steppers] == kinds
        held = [p for stepper in steppers for group in stepper.param_groups for p in group["params"]]
        assert len(held) == len({id(p) for p in held})
        assert {id(p) for p in held} == {id(p) for p in model.parameters()}


def test_state_dict_round_trip():
    model, other = made(bits=4, range="lsq"), made(seed=1, bits=4, range="lsq")
    x = torch.randn(2, 3, 3)
    assert not torch.equal(model.eval()(x), other.eval()(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(x), other(x))


def test_modrelu():
    z, bias = torch.tensor([-2.0, -0.5, 0.0, 0.5, 2.0]), torch.tensor(-1.0)
    assert torch.equal(modrelu(z, bias), torch.tensor([-1.0, 0.0, 0.0, 0.0, 1.0]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 0}, "hidden=0"),
        ({"training": "sgd"}, "bjorck, projunn, hadamard, got 'sgd'"),
        ({"activation": "tanh"}, "relu, modrelu, got 'tanh'"),
        ({"bits": 1}, "from 2 to 16"),
        ({"bits": 4, "range": "none"}, "range must be one of"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_refusals(changes, message):
    with pytest.raises(OptionError, match=message):
        made(**changes)


def test_refuses_other_inputs():
    with pytest.raises(OptionError, match=r"\[batch, steps, 3\], got shape \(2, 3\)"):
        made()(torch.ones(2, 3))
    with pytest.raises(OptionError, match="no steps"):
        made()(torch.ones(2, 0, 3))
