"""recurrence and recurrence_backward: against the equations in double precision, on every path that runs here."""

from __future__ import annotations

import itertools
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from hadamard_fx.errors import OptionError
from hadamard_fx.kernels import recurrence as forward
from hadamard_fx.kernels import recurrence_backward as backward
from hadamard_fx.kernels.activation import ACTIVATIONS
from hadamard_fx.kernels.recurrence import recurrence

SHAPES = ((1, 1, 1), (2, 3, 5), (7, 17, 33), (5, 16, 64))
"""T, B, n."""


def tensors(steps: int, batch: int, hidden: int, activation: str, dtype: torch.dtype = torch.float32) -> list[Any]:
    """driven, W (orthogonal, so that errors neither grow nor vanish), h_0, c."""
    torch.manual_seed(steps + batch + hidden)
    weight = torch.linalg.qr(torch.randn(hidden, hidden))[0]
    made = [torch.randn(steps, batch, hidden), weight, torch.randn(batch, hidden)]
    c = -0.1 * torch.rand(hidden) if activation == "modrelu" else None
    return [*(t.to(dtype) for t in made), None if c is None else c.to(dtype)]


def loop(d: Tensor, w: Tensor, h: Tensor, c: Tensor | None, activation: str) -> Tensor:
    """h_t = σ(W h_{t−1} + d_t), a unit at a time."""
    found = []
    for t in range(len(d)):
        z = torch.stack([d[t, :, i] + (h * w[i]).sum(1) for i in range(len(w))], 1)
        if activation == "modrelu":
            assert c is not None
            h = z.sgn() * (z.abs() + c).clamp_min(0)
        else:
            h = {"relu": z.clamp_min(0), "tanh": (1 - torch.exp(-2 * z)) / (1 + torch.exp(-2 * z)), "identity": z}[
                activation
            ]
        found.append(h)
    return torch.stack(found)


def gradients(function: Any, arguments: list[Any], activation: str, upstream: Tensor) -> list[Tensor]:
    """The states, and the gradients of all tensors."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in arguments]
    states = function(*leaves, activation)
    states.backward(upstream.to(states.dtype))
    return [states.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]


def bound(steps: int, hidden: int, dtype: torch.dtype) -> float:
    """Relative error of sums of n products whose errors go on through T steps that neither stretch nor shrink them.

    In bfloat16 the states are rounded once a step beside the sums.
    """
    return float(4 * steps * (hidden**0.5 + 1) * torch.finfo(dtype).eps)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_states_and_gradients_in_double_precision(shape: tuple[int, int, int], activation: str) -> None:
    """The operator in float32 against autograd through the loop in float64."""
    arguments = tensors(*shape, activation)
    upstream = torch.randn(shape)
    wide = [None if t is None else t.double() for t in arguments]
    expected = gradients(loop, wide, activation, upstream)
    found = gradients(recurrence, arguments, activation, upstream)
    for one, other in zip(found, expected, strict=True):
        assert (one.double() - other).norm() <= bound(shape[0], shape[2], torch.float32) * other.norm() + 1e-30
    torch.testing.assert_close(forward.reference(*wide, activation), expected[0])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_by_differences(activation: str) -> None:
    d, w, h, c = (None if t is None else t.requires_grad_() for t in tensors(4, 3, 5, activation, torch.float64))
    if c is None:
        assert torch.autograd.gradcheck(lambda *t: recurrence(*t, None, activation), (d, w, h))
    else:
        assert torch.autograd.gradcheck(lambda *t: recurrence(*t, activation), (d, w, h, c))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_all_forms_agree(activation: str) -> None:
    arguments = tensors(6, 4, 8, activation)
    states = forward.cpu(*arguments, activation)
    torch.testing.assert_close(forward.native(*arguments, activation), states)
    g = torch.randn_like(states)
    torch.testing.assert_close(
        backward.native(g, arguments[1], states, activation), backward.cpu(g, arguments[1], states, activation)
    )


def test_any_strides() -> None:
    d, w, h, _ = tensors(5, 4, 8, "relu")
    turned = d.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(recurrence(turned, w.t().contiguous().t(), h), recurrence(d, w, h))


def test_a_number_that_is_none_stays_one() -> None:
    d, w, h, c = tensors(3, 2, 4, "modrelu")
    d[1, 0, 2] = float("nan")
    for activation in ACTIVATIONS:
        states = recurrence(d, w, h, c if activation == "modrelu" else None, activation)
        assert states[1:, 0].isnan().any(1).all() and not states[:, 1].isnan().any()


def test_half_precision_weights_are_cast_to_the_sums() -> None:
    d, w, h, _ = tensors(4, 3, 8, "relu")
    states = recurrence(d.bfloat16(), w, h)
    assert states.dtype == torch.bfloat16
    expected = forward.reference(d, w, h)
    assert (states.double() - expected).norm() < bound(4, 8, torch.bfloat16) * expected.norm()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({0: torch.randn(3, 2)}, r"must be \[T, B, n\]"),
        ({1: torch.randn(4, 5)}, "asks for weight"),
        ({2: torch.randn(3, 4)}, "asks for weight"),
        ({0: torch.randn(0, 2, 4)}, "no steps"),
        ({3: torch.randn(4)}, "no other activation has one"),
        ({4: "modrelu"}, "needs a threshold"),
        ({4: "swish"}, "activation must be one of"),
    ],
)
def test_refusals(change: dict[int, Any], match: str) -> None:
    arguments: list[Any] = [*tensors(3, 2, 4, "relu"), "relu"]
    for place, value in change.items():
        arguments[place] = value
    with pytest.raises(OptionError, match=match):
        recurrence(*arguments)


def test_one_node_whatever_the_number_of_steps() -> None:
    """What the compiler sees does not grow with T."""
    sizes = []
    for steps in (3, 300):
        d, w, h, _ = tensors(steps, 2, 4, "relu")
        graphs: list[torch.fx.GraphModule] = []

        def keep(gm: torch.fx.GraphModule, _: Any, graphs: list[Any] = graphs) -> Any:
            graphs.append(gm)
            return gm.forward

        torch._dynamo.reset()
        torch.compile(recurrence, backend=keep)(d, w, h)
        sizes.append(len(graphs[0].graph.nodes))
    assert sizes[0] == sizes[1]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="test_interpreter.py runs it")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_interpreted(dtype: torch.dtype, shape: tuple[int, int, int], activation: str) -> None:
    pytest.importorskip("triton")
    from hadamard_fx.kernels import triton_recurrence

    arguments = tensors(*shape, activation, dtype)
    states = triton_recurrence.recurrence(*arguments, activation)
    expected = forward.reference(*arguments, activation)
    limit = bound(shape[0], shape[2], dtype)
    assert (states.double() - expected).norm() <= limit * expected.norm()
    g = torch.randn(shape).to(dtype)
    sums = triton_recurrence.recurrence_backward(g, arguments[1], states, activation)
    expected = backward.reference(g, arguments[1], states, activation)
    assert (sums.double() - expected).norm() <= limit * expected.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [*SHAPES, (200, 64, 256), (100, 33, 512), (20, 9, 700)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_a_device(dtype: torch.dtype, shape: tuple[int, int, int], activation: str) -> None:
    """One kernel up to 512 units, a launch a step above: both against autograd through the loop in float64.

    In bfloat16 a ReLU may fall on the other side of zero, which is no matter of rounding: its gradients are compared
    with those of the states that the device found.
    """
    arguments = tensors(*shape, activation, dtype)
    on_device = [None if t is None else t.cuda() for t in arguments]
    states = recurrence(*on_device, activation)
    limit, expected = bound(shape[0], shape[2], dtype), forward.reference(*arguments, activation)
    assert (states.cpu().double() - expected).norm() <= limit * expected.norm()
    g = torch.randn(shape).to(dtype)
    sums = backward.KERNEL.op(g.cuda(), on_device[1], states, activation)
    expected = backward.reference(g, arguments[1], states.cpu(), activation)
    assert (sums.cpu().double() - expected).norm() <= limit * expected.norm()


@pytest.mark.parametrize("capability", [80, 90])
def test_compiles_without_a_device(capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every activation and both dtypes; a net of one unit, whose sizes are constants, a small and a large one."""
    pytest.importorskip("triton")
    from hadamard_fx.kernels import ahead

    jobs: list[tuple[Any, ...]] = []

    def submit(kernel: Any, arguments: tuple[Any, ...], options: dict[str, Any], device: torch.device) -> None:
        types = tuple(str(a.dtype) for a in arguments if isinstance(a, torch.Tensor))
        job = (kernel.fn.__module__, kernel.fn.__name__, types, arguments[len(types) :], options)
        jobs.append((*job, ("cuda", capability, 32), str(tmp_path / str(len(jobs)))))

    monkeypatch.setattr(ahead, "submit", submit)
    calls = []
    with FakeTensorMode():
        for activation, dtype, (steps, batch, hidden) in itertools.product(
            ("relu", "modrelu", "tanh"), (torch.float32, torch.bfloat16), ((1, 1, 1), (100, 64, 48), (100, 64, 512))
        ):
            shapes = ((steps, batch, hidden), (hidden, hidden), (batch, hidden), (hidden,))
            d, w, h, c = (torch.empty(shape, dtype=dtype, device="cuda") for shape in shapes)
            threshold = c if activation == "modrelu" else None
            calls += [(forward.KERNEL, (d, w, h, threshold, activation)), (backward.KERNEL, (d, w, d, activation))]
    ahead.prepare(calls)
    assert len(jobs) == len(calls)
    process = ahead._process()
    assert process is not None
    process.communicate(b"".join(map(pickle.dumps, jobs)), timeout=300)
    assert not [number for number in range(len(jobs)) if not list((tmp_path / str(number)).rglob("*.cubin"))]
