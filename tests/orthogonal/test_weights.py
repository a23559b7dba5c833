"""AdaRound and GPTQ: against their definitions, exhaustive search, and nearest rounding on a trained net."""

from __future__ import annotations

import itertools

import pytest
import torch

from hadamard_fx.errors import OptionError
from hadamard_fx.orthogonal.activations import quantize_activations
from hadamard_fx.orthogonal.adaround import adaround
from hadamard_fx.orthogonal.gptq import DAMPING, gptq
from hadamard_fx.orthogonal.quantizers import integers, minmax_range
from hadamard_fx.orthogonal.recurrent import ORNNConfig, OrthogonalRNN, optimizers
from hadamard_fx.orthogonal.weights import METHODS, grams, quantize_weights, rounded


def correlated(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """Inputs of which a few directions hold most, [rows, columns], float64."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) @ (mixed + 2)


def error(w: torch.Tensor, codes: torch.Tensor, alpha: torch.Tensor, bits: int, x: torch.Tensor) -> torch.Tensor:
    """‖x (w − ŵ)ᵀ‖² of each row."""
    return ((w - codes * alpha / 2 ** (bits - 1)) @ x.T).square().sum(1)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_by_its_definition(bits):
    """At each column the rest minimises the whole error, given what is rounded: a least-squares problem of its own."""
    x = correlated(200, 7)
    w = torch.randn(5, 7, dtype=torch.float64)
    alpha = minmax_range(w, per_channel=True)
    g = x.T @ x
    damped = g + DAMPING * g.diagonal().mean() * torch.eye(7)
    expected, now = torch.empty_like(w), w.clone()
    for j in range(7):
        expected[:, j : j + 1] = integers(now[:, j : j + 1], alpha, bits)
        missing = (w - expected * alpha / 2 ** (bits - 1))[:, : j + 1]
        change = torch.linalg.solve(damped[j + 1 :, j + 1 :], (missing @ damped[: j + 1, j + 1 :]).T).T
        now[:, j + 1 :] = w[:, j + 1 :] + change
    assert torch.equal(gptq(w, g, alpha, bits), expected)


def test_adaround_against_every_rounding():
    """2^7 ways for each row: the learned one is near the best, and not worse than the nearest."""
    torch.manual_seed(0)
    x, w, bits = correlated(200, 7), torch.randn(6, 7, dtype=torch.float64), 4
    alpha = minmax_range(w)
    floor = torch.floor(w * 8 / alpha)
    ways = [(floor + torch.tensor(way)).clamp(-8, 7) for way in itertools.product((0, 1), repeat=7)]
    best = torch.stack([error(w, codes, alpha, bits, x) for codes in ways]).amin(0)
    codes = adaround(w, x.T @ x, alpha, bits)
    assert any(torch.equal(codes[0], way[0]) for way in ways)
    found, nearest = error(w, codes, alpha, bits, x), error(w, integers(w, alpha, bits), alpha, bits, x)
    assert (found >= best * (1 - 1e-12)).all() and (found <= nearest * (1 + 1e-12)).all()
    assert found.sum() < 0.6 * nearest.sum() and found.sum() < 2 * best.sum()


@pytest.mark.parametrize("method", METHODS)
def test_inputs_that_are_independent_and_alike_need_no_more_than_the_nearest(method):
    w = torch.randn(6, 9)
    alpha = minmax_range(w)
    found = rounded(w, torch.eye(9, dtype=torch.float64), alpha, 4, method)
    torch.testing.assert_close(found, rounded(w, torch.eye(9, dtype=torch.float64), alpha, 4, "nearest"))


@pytest.mark.parametrize("method", METHODS)
def test_inputs_that_are_always_zero(method):
    w, gram = torch.randn(4, 5), torch.diag(torch.tensor([1.0, 0, 2, 0, 1], dtype=torch.float64))
    for one in (gram, torch.zeros(5, 5, dtype=torch.float64)):
        assert rounded(w, one, minmax_range(w), 3, method).isfinite().all()


@pytest.fixture(scope="module")
def trained() -> tuple[OrthogonalRNN, torch.Tensor, torch.Tensor]:
    """A net that says the first of eight steps again, its calibration and its test inputs."""
    torch.manual_seed(0)

    def sequences(count: int) -> torch.Tensor:
        return torch.randn(count, 8, 4) @ (0.5 * torch.eye(4) + 0.5)  # four features that mostly go together

    model = OrthogonalRNN(ORNNConfig(inputs=4, hidden=32, outputs=4, activation="modrelu"))
    (stepper,) = optimizers(model, lr=0.005)
    for _ in range(300):
        x = sequences(64)
        loss = torch.nn.functional.mse_loss(model(x), x[:, 0])
        stepper.zero_grad()
        loss.backward()
        stepper.step()
    assert loss.item() < 0.05
    return model.eval(), sequences(128), sequences(512)


@pytest.mark.parametrize("bits", [4, 5, 6])
@pytest.mark.parametrize("method", ["gptq", "adaround"])
def test_less_error_than_nearest_rounding_on_a_trained_net(trained, method, bits):
    """Of the sums of either weight, and of the output of the whole net, on inputs that were not calibrated on."""
    model, calibration, fresh = trained
    found, nearest = (quantize_weights(model, calibration, bits, way) for way in (method, "nearest"))
    for name, gram in zip(("recurrent", "input"), grams(model, fresh), strict=True):
        missing = [(getattr(model, name) - getattr(net, name)).double() for net in (found, nearest)]
        ours, theirs = (float(((m @ gram) * m).sum()) for m in missing)
        print(f"{name}, {method}, {bits} bits: error of the sums {ours / theirs:.3f} of nearest rounding's")
        assert ours < theirs
    with torch.no_grad():
        ours, theirs = (float((net(fresh) - model(fresh)).norm()) for net in (found, nearest))
    print(f"{method}, {bits} bits: error of the output {ours / theirs:.3f} of nearest rounding's")
    assert ours < theirs


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_the_net_runs_on_integers(trained, method, per_channel):
    model, calibration, fresh = trained
    net = quantize_weights(model, calibration, 4, method, "mse", per_channel)
    assert all(len(row.unique()) <= 16 for row in net.recurrent)
    integer = quantize_activations(net, calibration, bits=14)
    states = integer.integer_states(fresh)
    assert torch.equal(states.double() * 2.0**-integer.state_exponent, integer.simulated_states(fresh))
    assert (integer(fresh) - net(fresh)).norm() < 0.05 * net(fresh).norm()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"method": "bankers"}, "nearest, gptq, adaround, got 'bankers'"),
        ({"range": "lsq"}, "minmax or mse"),
        ({"bits": 1}, "from 2 to 16"),
    ],
)
def test_refusals(trained, change, match):
    model, calibration, _ = trained
    with pytest.raises(OptionError, match=match):
        quantize_weights(model, calibration, **{"bits": 4, **change})
    quantised = OrthogonalRNN(ORNNConfig(inputs=4, hidden=8, outputs=2, bits=4))
    with pytest.raises(OptionError, match="one in floating point"):
        quantize_weights(quantised, calibration, 4)
