"""Calls at sites: what is recorded, what is replayed, and what stays a call of the operator (``kernels/replay.py``)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hadamard_fx
from hadamard_fx import compat
from hadamard_fx.kernels import workspace
from hadamard_fx.kernels.replay import Sites, launched


class Doubling:
    """A launch on CPU memory: out = 2·x + scratch."""

    loose = 1

    def __init__(self) -> None:
        self.replayed = 0

    def __call__(self, *tensors: Tensor) -> None:
        launched(self, tensors)
        self.run(*(tensor.data_ptr() for tensor in tensors))

    def run(self, x: int, out: int, scratch: int, seed: int) -> None:
        source, target = (ctypes.c_int32 * 4).from_address(x), (ctypes.c_int32 * 4).from_address(out)
        for index in range(4):
            target[index] = 2 * source[index] + ctypes.c_int32.from_address(scratch).value

    def again(self, device: int) -> Callable[..., None] | None:
        def launch(stream: int, *addresses: int) -> None:
            self.replayed += 1
            self.run(*addresses)

        return launch


def operator(launch: Doubling, before: Callable[[Tensor], Tensor] = lambda x: x) -> Callable[..., Tensor]:
    def op(inputs: list[Tensor], factor: float, seed: Tensor) -> Tensor:
        out = torch.empty(4, dtype=torch.int32)
        launch(before(inputs[0]), out, workspace.zeros(1, out), seed)
        return out

    return op


def numbers(start: int, offset: int = 0) -> Tensor:
    return torch.arange(start - offset, start + 4, dtype=torch.int32)[offset:]


def test_the_third_call_at_a_site_is_replayed() -> None:
    launch = Doubling()
    sites = Sites(operator(launch))
    found = [sites("a", [numbers(n)], 0.5, numbers(0)) for n in range(5)]
    assert launch.replayed == 3
    assert all(torch.equal(out, 2 * numbers(n)) for n, out in enumerate(found))
    assert len({out.data_ptr() for out in found}) == 5, "each call has a result of its own"
    sites("b", [numbers(0)], 0.5, numbers(0))
    assert launch.replayed == 3, "another site has a recording of its own"


def test_arguments_that_start_anywhere_are_left_to_the_operator() -> None:
    launch = Doubling()
    sites = Sites(operator(launch))
    for _ in range(3):
        sites("a", [numbers(1)], 0.5, numbers(0))
    assert torch.equal(sites("a", [numbers(3, offset=1)], 0.5, numbers(0)), 2 * numbers(3))
    assert launch.replayed == 1
    sites("a", [numbers(1)], 0.5, numbers(0, offset=1))
    assert launch.replayed == 2, "a seed may start anywhere"


@pytest.mark.parametrize("before", [lambda x: x + 1, lambda x: x.clone()], ids=["computed", "copied"])
def test_a_call_that_did_more_than_launch_is_never_replayed(before: Callable[[Tensor], Tensor]) -> None:
    launch = Doubling()
    op = operator(launch, before)
    sites = Sites(op)
    for n in range(5):
        assert torch.equal(sites("a", [numbers(n)], 0.5, numbers(0)), op([numbers(n)], 0.5, numbers(0)))
    assert launch.replayed == 0


def test_an_empty_tensor_that_is_no_result_is_in_nobodys_way() -> None:
    launch = Doubling()
    launch.loose = 2

    def op(x: Tensor) -> Tensor:
        out = torch.empty(4, dtype=torch.int32)
        launch(x, out, workspace.zeros(1, out), torch.empty(0))
        return out

    sites = Sites(op)
    for n in range(4):
        assert torch.equal(sites("a", numbers(n)), 2 * numbers(n))
    assert launch.replayed == 2


def test_a_result_that_torch_made_is_never_replayed() -> None:
    launch = Doubling()

    def op(x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        return operator(launch)([x], 0.5, seed), x.sum()

    sites = Sites(op)
    for n in range(4):
        assert int(sites("a", numbers(n), numbers(0))[1]) == int(numbers(n).sum())
    assert launch.replayed == 0


def test_compiled_code_calls_at_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compat, "SITE_DEVICES", ("cpu",))
    called: list[str] = []
    at = Sites.__call__

    def count(self: Sites, site: str, *arguments: Any) -> Any:
        called.append(site)
        return at(self, site, *arguments)

    monkeypatch.setattr(Sites, "__call__", count)
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    x = torch.randn(96, 64)
    with torch._inductor.config.patch(force_disable_caches=True):
        for options in ({"profile": "hot"}, {"profile": "hot", "grad_input": {"rounding": "nearest"}}):
            compiled = torch.compile(model, backend=hadamard_fx.hadamard, options=options)
            for _ in range(2):
                compiled(x).square().mean().backward()
    names = len(set(called))
    assert names >= 6, "the products, both forms of the gradients, the compressed x, the weights"
    assert len(called) >= 2 * names
