"""Profile ``qornn``: what counts as a recurrence, and the numbers, against the equations in double precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from harness import ratio, traced
from torch import nn

from hadamard_fx.cost_model.error import relative_error
from hadamard_fx.errors import OptionError, SchemeError
from hadamard_fx.orthogonal.recurrent import ORNNConfig, OrthogonalRNN
from hadamard_fx.plan import Gemm, Role, Size
from hadamard_fx.policy import Policy
from hadamard_fx.straight_through import StraightThrough

BATCH, STEPS, INPUTS, HIDDEN, OUTPUTS = 5, 6, 3, 12, 4


class Plain(nn.Module):
    """h_t = σ(W h_{t−1} + U x_t), V h_T, as a user writes it; ``way`` says how."""

    def __init__(self, way: str = "matmul") -> None:
        super().__init__()
        self.way = way
        self.W = nn.Parameter(nn.init.orthogonal_(torch.empty(HIDDEN, HIDDEN)))
        self.U = nn.Parameter(0.5 * torch.randn(HIDDEN, INPUTS))
        self.start = nn.Parameter(torch.rand(1, HIDDEN)) if way == "learned start" else None
        self.output = nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x):
        h = x.new_zeros(x.shape[0], HIDDEN)
        if self.start is not None:
            h = self.start  # one row: the first product depends on parameters only
        if self.way == "columns":
            h = h.T
            for step in x.unbind(1):
                h = torch.relu(self.W @ h + self.U @ step.T)
            return self.output(h.T)
        driven = x @ self.U.T  # one product for all steps
        for t in range(x.shape[1]):
            if self.way == "addmm":
                h = torch.relu(torch.addmm(driven[:, t], h, self.W.T))
            elif self.way == "linear":
                h = torch.relu(nn.functional.linear(h, self.W) + nn.functional.linear(x[:, t], self.U))
            else:
                h = torch.relu(h @ self.W.T + x[:, t] @ self.U.T)
        return self.output(h)


def grid(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """q_k as algorithms.md, section 5, writes it."""
    alpha, levels = weight.abs().max(), 2 ** (bits - 1)
    return (alpha / levels) * torch.clip(torch.round(levels * weight / alpha), -levels, levels - 1)


def straight(weight: torch.Tensor, bits: int) -> torch.Tensor:
    return weight + (grid(weight, bits) - weight).detach()


def reference(model: Plain, x: torch.Tensor, bits: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Output and gradients of its mean square, float64."""
    names = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    W, U = straight(names["W"], bits), straight(names["U"], bits)
    h = names["start"] if "start" in names else torch.zeros(len(x), HIDDEN, dtype=torch.float64)
    for t in range(x.shape[1]):
        h = torch.relu(h @ W.T + x[:, t].double() @ U.T)
    y = h @ names["output.weight"].T + names["output.bias"]
    y.square().mean().backward()
    return y.detach(), {name: p.grad for name, p in names.items()}


BOUND = STEPS * (HIDDEN + INPUTS) * 2**-23
"""Each of the steps adds up that many float32 products; roundings of the same sign would add up to this."""


@pytest.mark.parametrize("bits", [2, 4, 5, 8])
@pytest.mark.parametrize("way", ["matmul", "linear", "addmm", "columns", "learned start"])
def test_as_the_equations_in_double_precision(way, bits):
    torch.manual_seed(bits)
    model, x = Plain(way), torch.randn(BATCH, STEPS, INPUTS)
    compiled, trace = traced(model, {"profile": "qornn", "bits": bits})
    y = compiled(x)
    y.square().mean().backward()
    expected, gradients = reference(model, x, bits)
    assert ratio(y.detach(), expected) < BOUND
    for name, gradient in gradients.items():
        assert ratio(model.get_parameter(name).grad, gradient) < 4 * BOUND, name
    quantised = {d.gemm.weight for d in trace.decisions if d.rewritten}
    assert quantised == {"W", "U"}
    assert ratio(y.detach(), model(x).detach()) > 10 * BOUND  # without the grid it is another net


@pytest.mark.parametrize("training", ["bjorck", "projunn"])
@pytest.mark.parametrize("choices", [{}, {"range": "mse"}, {"per_channel": True}], ids=str)
def test_the_orthogonal_net_is_quantised_as_it_would_quantise_itself(training, choices):
    """Behind Björck's iteration too; U has one range for all rows in both."""
    sizes = {"inputs": INPUTS, "hidden": HIDDEN, "outputs": OUTPUTS, "training": training, "activation": "modrelu"}
    torch.manual_seed(1)
    plain = OrthogonalRNN(ORNNConfig(**sizes)).eval()
    torch.manual_seed(1)
    own = OrthogonalRNN(ORNNConfig(**sizes, bits=4, **choices)).eval()
    x = torch.randn(BATCH, STEPS, INPUTS)
    layer = {"forward": {"kind": "straight_through", "bits": 4, **choices}}
    layer["grad_input"] = layer["forward"]
    unlike = {"forward": {"kind": "straight_through", "bits": 4, "range": choices.get("range", "minmax")}}
    compiled, trace = traced(plain, {"profile": "qornn", "overrides": {r".*recurrent.*": layer, r".*input.*": unlike}})
    for run in (compiled, own):
        run(x).square().mean().backward()
    torch.testing.assert_close(compiled(x), own(x), rtol=1e-5, atol=1e-6)
    found, expected = (m.recurrent_parameter().grad for m in (plain, own))
    assert ratio(found, expected) < 1e-5
    assert {d.gemm.recurrence for d in trace.decisions if d.rewritten} == {"recurrent", "input"}


class Cell(nn.Module):
    """A gated cell by hand behind an encoder: two recurrent layers in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(INPUTS, 7)
        self.entry, self.again = nn.Linear(7, 2 * HIDDEN), nn.Linear(HIDDEN, 2 * HIDDEN)
        self.output = nn.Linear(HIDDEN, OUTPUTS)

    def forward(self, x):
        h = x.new_zeros(x.shape[0], HIDDEN)
        for step in torch.tanh(self.encoder(x)).unbind(1):
            gate, new = (self.entry(step) + self.again(h)).chunk(2, 1)
            h = gate.sigmoid() * h + (1 - gate.sigmoid()) * new.tanh()
        return self.output(h)


def test_encoder_and_output_layer_are_no_part_of_the_recurrence():
    compiled, trace = traced(Cell(), {"profile": "qornn"})
    compiled(torch.randn(BATCH, STEPS, INPUTS)).sum().backward()
    kinds = {d.gemm.weight: d.gemm.recurrence for d in trace.decisions if not d.gemm.gradient}
    assert kinds == {"encoder.weight": "", "entry.weight": "input", "again.weight": "recurrent", "output.weight": ""}
    (encoder,) = (d for d in trace.of(Role.FORWARD) if d.gemm.layer == "encoder")
    assert not encoder.rewritten and "neither recurrent nor an input" in encoder.reason
    recurrent = [d for d in trace.decisions if d.gemm.layer.startswith("again") and d.rewritten]
    assert all("depends on an earlier product of its weight" in d.reason for d in recurrent)
    assert len(recurrent) == 2 * STEPS - 1  # every step forward, the first one's constant states want no gradient


def test_no_recurrence_without_a_loop():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    compiled, trace = traced(model, {"profile": "qornn"})
    compiled(torch.randn(4, 8)).sum().backward()
    assert not any(d.rewritten for d in trace.decisions)
    assert all(d.reason for d in trace.decisions)


def test_parallel_uses_of_a_weight_are_none():
    """Siamese: one weight, twice, on inputs that do not depend on each other."""
    layer = nn.Linear(8, 8)
    compiled, trace = traced(lambda a, b: layer(a).relu() * layer(b), {"profile": "qornn"})
    compiled(torch.randn(4, 8), torch.randn(4, 8)).sum().backward()
    assert not any(d.rewritten for d in trace.decisions)


def test_overrides_by_layer_name():
    model, x = Plain(), torch.randn(BATCH, STEPS, INPUTS)
    anywhere = {"kind": "straight_through", "bits": 8, "applies_to": "any"}
    rules = {r"U": "exact", r"output": {"forward": anywhere, "grad_input": anywhere}}
    compiled, trace = traced(model, {"profile": "qornn", "bits": 3, "overrides": rules})
    compiled(x).sum().backward()
    bits = {d.gemm.weight: d.scheme.bits for d in trace.decisions if d.rewritten}
    assert bits == {"W": 3, "output.weight": 8}


def test_products_of_two_weights_of_one_module_have_their_names():
    compiled, trace = traced(Plain(), {"profile": "qornn"})
    compiled(torch.randn(BATCH, 3, INPUTS)).sum().backward()
    names = {d.gemm.layer for d in trace.decisions if not d.gemm.gradient}
    assert names == {*(f"{weight}#{step}" for weight in "WU" for step in range(3)), "output"}


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"bits": 5}, OptionError, "chooses the bits by price"),
        ({"profile": "exact", "bits": 5}, OptionError, "has a number of bits"),
        ({"profile": "qornn", "bits": 1}, SchemeError, "from 2 to 16, got 1"),
        ({"profile": "qornn", "bits": "5"}, OptionError, "number of bits of the profile"),
        ({"profile": "qornn", "bits": True}, OptionError, "number of bits of the profile"),
        ({"profile": "qornn", "grad_weight": {"kind": "straight_through"}}, SchemeError, "no scheme for grad_weight"),
    ],
)
def test_refusals(options, error, match):
    with pytest.raises(error, match=match):
        Policy.resolve(options, environ={}, directory="/")


def test_bits_are_those_of_every_scheme_of_the_profile():
    policy = Policy.resolve({"profile": "hdqt", "bits": 6}, environ={}, directory="/")
    assert [policy.profile.schemes(role)[0].bits for role in (Role.FORWARD, Role.GRAD_INPUT, Role.GRAD_WEIGHT)] == [
        6
    ] * 3


@pytest.mark.parametrize("field", [{"range": "lsq"}, {"applies_to": "input"}])
def test_scheme_refuses(field):
    with pytest.raises(SchemeError, match="must be one of"):
        StraightThrough(**field)


def test_all_steps_as_one_node():
    """``kernels/recurrence.py``: recurrent by what it is, one decision for a thousand steps; g_W keeps its role."""
    sizes = ORNNConfig(inputs=INPUTS, hidden=HIDDEN, outputs=OUTPUTS, training="projunn")
    compiled, trace = traced(OrthogonalRNN(sizes), {"profile": "qornn"})
    compiled(torch.randn(BATCH, 1000, INPUTS)).sum().backward()
    of_w = {(d.gemm.role, d.gemm.op, d.rewritten) for d in trace.decisions if d.gemm.weight == "recurrent"}
    assert of_w == {
        (Role.FORWARD, "recurrence", True),
        (Role.GRAD_INPUT, "recurrence_backward", True),
        (Role.GRAD_WEIGHT, "mm", False),
        (Role.PARAMETERS, "mm", False),  # of the first state, zeros, which hold no tokens
    }
    assert any("its 1000 steps are one call" in d.reason for d in trace.decisions)
    (forward,) = (d.gemm for d in trace.decisions if d.gemm.op == "recurrence")
    assert (forward.batch.hint, forward.M.hint, forward.N.hint, forward.K.hint) == (1000, BATCH, HIDDEN, HIDDEN)
    assert len(trace.decisions) < 12


def test_signs_of_a_hadamard_matrix_are_left_and_the_input_weight_is_not():
    sizes = ORNNConfig(inputs=INPUTS, hidden=16, outputs=OUTPUTS, training="hadamard", activation="modrelu")
    model, own, x = OrthogonalRNN(sizes), OrthogonalRNN(replace(sizes, bits=3)), torch.randn(BATCH, 20, INPUTS)
    names = {"input": "parametrizations.input.original"}
    own.load_state_dict({names.get(name, name): value for name, value in model.state_dict().items()})
    compiled, trace = traced(model, {"profile": "qornn", "bits": 3})
    for run in (compiled, own):
        run(x).square().sum().backward()
    assert {d.gemm.weight for d in trace.decisions if d.rewritten} == {"input"}
    for name, parameter in model.named_parameters():
        assert ratio(parameter.grad, own.get_parameter(names.get(name, name)).grad) < 1e-5, name


@pytest.mark.parametrize("profile", ["hot", "hdqt", "int8", "exact"])
def test_other_profiles_leave_the_steps_alone(profile):
    model = OrthogonalRNN(ORNNConfig(inputs=INPUTS, hidden=16, outputs=OUTPUTS, training="projunn"))
    compiled, trace = traced(model, {"profile": profile})
    compiled(torch.randn(BATCH, 8, INPUTS)).sum().backward()
    steps = [d for d in trace.decisions if d.gemm.op.startswith("recurrence")]
    assert len(steps) == 2 and not any(d.rewritten for d in steps) and all(d.reason for d in steps)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bits", [3, 5, 8])
def test_predicted_error_of_a_gaussian_product(bits, per_channel):
    """Against the product itself: x [512, 96] times w [64, 96]."""
    torch.manual_seed(0)
    x, w = torch.randn(512, 96, dtype=torch.float64), torch.randn(64, 96, dtype=torch.float64)
    scheme = StraightThrough(bits, per_channel=per_channel)
    gemm = Gemm("n", Role.FORWARD, "l", Size(512), Size(64), Size(96), "float32", "cpu", "x", "w")
    rounded = torch.stack([grid(row, bits) for row in w]) if per_channel else grid(w, bits)
    measured = ratio(x @ rounded.T, x @ w.T)
    assert relative_error(scheme, gemm) == pytest.approx(measured, rel=0.1)
