"""walsh_recurrence: transforms and products are the same function, against the equations in double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hadamard_fx.errors import OptionError
from hadamard_fx.kernels import cpp_walsh_recurrence
from hadamard_fx.kernels import walsh_recurrence as forward
from hadamard_fx.kernels import walsh_recurrence_backward as backward
from hadamard_fx.kernels.activation import ACTIVATIONS
from hadamard_fx.kernels.walsh_recurrence import walsh_recurrence
from hadamard_fx.kernels.walsh_recurrence_backward import FEWEST_UNITS

STEPS, BATCH = 5, 3


def tensors(units: int, activation: str, dtype: torch.dtype = torch.float32) -> list[Any]:
    """driven, signs, h_0, c."""
    torch.manual_seed(units)
    made = [torch.randn(STEPS, BATCH, units), torch.randn(units).sign(), torch.randn(BATCH, units)]
    c = -0.1 * torch.rand(units).to(dtype) if activation == "modrelu" else None
    return [*(t.to(dtype) for t in made), c]


def matrix(signs: torch.Tensor) -> torch.Tensor:
    """diag(s) H/√d, H by Sylvester's recursion."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while len(h) < len(signs):
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return signs[:, None] * h / len(h) ** 0.5


def loop(d: torch.Tensor, s: torch.Tensor, h: torch.Tensor, c: torch.Tensor | None, activation: str) -> torch.Tensor:
    found = []
    for step in d.unbind(0):
        z = h @ matrix(s).T + step
        if activation == "modrelu":
            assert c is not None
            h = z.sgn() * (z.abs() + c).clamp_min(0)
        else:
            h = {"relu": z.clamp_min(0), "tanh": torch.tanh(z), "identity": z}[activation]
        found.append(h)
    return torch.stack(found)


def gradients(function: Any, arguments: list[Any], activation: str, upstream: torch.Tensor) -> list[torch.Tensor]:
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in arguments]
    states = function(*leaves, activation)
    states.backward(upstream.to(states.dtype))
    return [states.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("units", [2, 64, FEWEST_UNITS, 1024])
def test_states_and_gradients_in_double_precision(units: int, activation: str) -> None:
    """Relative errors of sums of d products over the steps, whose matrix keeps them as large as they are."""
    arguments, upstream = tensors(units, activation), torch.randn(STEPS, BATCH, units)
    wide = [None if t is None else t.double() for t in arguments]
    expected = gradients(loop, wide, activation, upstream)
    bound = 4 * STEPS * (units**0.5 + 1) * 2**-23
    for one, other in zip(gradients(walsh_recurrence, arguments, activation, upstream), expected, strict=True):
        assert (one.double() - other).norm() <= bound * other.norm()
    torch.testing.assert_close(forward.reference(*wide, activation), expected[0])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("units", [2, 4, 16, 32, 512])
def test_transforms_agree_with_products(units: int, activation: str) -> None:
    """The C++ at every size, also where the operator would rather multiply."""
    d, s, h, c = tensors(units, activation)
    states = cpp_walsh_recurrence.forward(d, s / units**0.5, h, c, activation)
    torch.testing.assert_close(states, forward.cpu(d, s, h, c, activation), rtol=1e-5, atol=1e-5)
    g = torch.randn_like(d)
    sums, of_rows = cpp_walsh_recurrence.backward(g, s / units**0.5, states, h, activation)
    expected, expected_rows = backward.cpu(g, s, states, h, activation)
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(of_rows / units**0.5, expected_rows, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_by_differences(activation: str) -> None:
    *leaves, c = tensors(8, activation, torch.float64)
    for tensor in leaves:
        tensor.requires_grad_()
    if c is None:
        assert torch.autograd.gradcheck(lambda *t: walsh_recurrence(*t, None, activation), leaves)
    else:
        assert torch.autograd.gradcheck(lambda *t: walsh_recurrence(*t, activation), [*leaves, c.requires_grad_()])


def test_a_number_that_is_none_stays_one() -> None:
    d, s, h, c = tensors(FEWEST_UNITS, "modrelu")
    d[1, 0, 2] = float("nan")
    for activation in ACTIVATIONS:
        states = walsh_recurrence(d, s, h, c if activation == "modrelu" else None, activation)
        assert states[1:, 0].isnan().any(1).all() and not states[:, 1:].isnan().any()


@pytest.mark.parametrize("units", [1, 12])
def test_other_sizes_are_refused(units: int) -> None:
    with pytest.raises(OptionError, match="d a power of two"):
        walsh_recurrence(torch.randn(2, 3, units), torch.ones(units), torch.zeros(3, units))


def test_other_shapes_are_refused() -> None:
    with pytest.raises(OptionError, match="asks for weight"):
        walsh_recurrence(torch.randn(2, 3, 8), torch.ones(4), torch.zeros(3, 8))
