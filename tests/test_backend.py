"""The backend through Inductor: exact forward, caches, hooks, modes, bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hadamard_fx
from hadamard_fx import compat
from hadamard_fx.plan import Role
from hadamard_fx.scheme import Exact

HOT = {"profile": "hot"}


def network(width: int = 32, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(width, 64, **kwargs), nn.GELU(), nn.Linear(64, 16, **kwargs))


def step(module: nn.Module, x: torch.Tensor, options: dict[str, Any] | None, **kwargs: Any) -> torch.Tensor:
    compiled = torch.compile(module, backend=hadamard_fx.hadamard, options=options, **kwargs)
    y: torch.Tensor = compiled(x)
    y.float().square().mean().backward()
    return y.detach()


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    torch.manual_seed(1)


def test_reset_forgets_the_reports() -> None:
    step(network(), torch.randn(8, 32), {"profile": "exact"})
    assert hadamard_fx.reports()
    torch._dynamo.reset()
    assert not hadamard_fx.reports()


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_forward_is_bit_identical_to_inductor(autocast: bool) -> None:
    module, x = network(), torch.randn(37, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        expected = torch.compile(module, backend="inductor")(x)
        found = torch.compile(module, backend=hadamard_fx.hadamard, options=HOT)(x)
    assert torch.equal(found, expected)


def test_profile_exact_gives_the_gradients_of_inductor() -> None:
    module, x = network(), torch.randn(37, 32)
    torch.compile(module, backend="inductor")(x).float().square().mean().backward()
    expected = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    step(module, x, {"profile": "exact"})
    assert all(torch.equal(p.grad, e) for p, e in zip(module.parameters(), expected, strict=True))


def test_draws_differ_per_step_and_follow_the_seed() -> None:
    module, x = network(), torch.randn(64, 32)
    compiled = torch.compile(module, backend=hadamard_fx.hadamard, options=HOT)

    def gradient() -> torch.Tensor:
        module.zero_grad()
        compiled(x).square().mean().backward()
        return module[0].weight.grad.clone()

    gradient()
    torch.manual_seed(5)
    first, second = gradient(), gradient()
    torch.manual_seed(5)
    assert torch.equal(gradient(), first)
    assert not torch.equal(first, second)


def test_evaluation_and_inference() -> None:
    module, x = network().eval(), torch.randn(9, 32)
    compiled = torch.compile(module, backend=hadamard_fx.hadamard, options=HOT)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), module(x))
    report = hadamard_fx.reports()[-1]
    assert not report.plan.training
    assert all(isinstance(d.scheme, Exact) and d.reason for d in report.plan.decisions)


def test_mode_is_inductors() -> None:
    module, x = network(), torch.randn(9, 32)
    compiled = torch.compile(module, backend=hadamard_fx.hadamard, mode="reduce-overhead")
    compiled(x).sum().backward()
    torch._dynamo.reset()
    unknown = torch.compile(module, backend=hadamard_fx.hadamard, mode="fastest")
    with pytest.raises(Exception, match="Unrecognized mode"):
        unknown(x)


class _Counting(compat.CustomGraphPass):
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, graph: torch.fx.Graph) -> None:
        self.calls += 1

    def uuid(self) -> str:
        return "counting"


def test_hooks_of_the_user_still_run() -> None:
    theirs = _Counting()
    with compat.inductor_config.patch({"joint_custom_pre_pass": theirs, "force_disable_caches": True}):
        step(network(), torch.randn(24, 32), HOT)
    assert theirs.calls == 1
    assert hadamard_fx.reports()[-1].plan.rewrites()


SECOND_PROCESS = """
import json, torch, hadamard_fx
from torch import nn
torch.manual_seed(0)
module, x = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 16)), torch.randn(40, 32)
y = torch.compile(module, backend=hadamard_fx.hadamard, options={"profile": "hot"})(x)
y.square().mean().backward()
report = hadamard_fx.reports()[-1]
print(json.dumps([report.from_cache, report.plan.digest(), report.saved_before, report.saved_after]))
"""


def test_a_second_process_compiles_from_the_cache_and_has_the_report(tmp_path: Path) -> None:
    def run() -> list[Any]:
        done = subprocess.run(
            [sys.executable, "-c", SECOND_PROCESS],
            env={**__import__("os").environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        found: list[Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    cold, warm = run(), run()
    assert (cold[0], warm[0]) == (False, True)
    assert cold[1:] == warm[1:]


def test_wide_and_complex_products_are_left_alone_with_a_reason() -> None:
    for dtype in (torch.float64, torch.complex64):
        torch._dynamo.reset()
        module = nn.Linear(8, 8, dtype=dtype)
        compiled = torch.compile(module, backend=hadamard_fx.hadamard, options=HOT)
        compiled(torch.randn(4, 8, dtype=dtype)).abs().sum().backward()
        decisions = [d for d in hadamard_fx.reports()[-1].plan.decisions if d.gemm.role is not Role.FORWARD]
        assert decisions and all(isinstance(d.scheme, Exact) for d in decisions)
        assert all(str(dtype).removeprefix("torch.") in d.reason for d in decisions)


def test_an_empty_batch_trains() -> None:
    module = network()
    step(module, torch.randn(0, 32), HOT)
    assert "an empty product" in {d.reason for d in hadamard_fx.reports()[-1].plan.decisions}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_bad_activations_never_give_plausible_gradients(bad: float) -> None:
    module, x = nn.Sequential(nn.Linear(32, 24), nn.Linear(24, 16)), torch.randn(48, 32)
    x[3, 4] = bad
    step(module, x, HOT)
    assert not module[0].weight.grad[:, 4].isfinite().any()
    assert not module[1].weight.grad.isfinite().any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profil": "hot"}, "did you mean 'profile'"),
        ({"profile": 3}, "expected the name of a profile"),
        ({"grad_weight": {"rank": 32}}, "rank must be from 1 to the order 16"),
        ({"grad_weight": {"order": 12}}, "power of two"),
        ({"inductor": {"max_autotun": True}}, "no setting 'max_autotun'"),
        ({"inductor": {"custom_partitioner_fn": None}}, "'custom_partitioner_fn' is a hook"),
        ({"inductor": {"max_autotune": "yes"}}, "'max_autotune' takes a value of type bool, not 'yes'"),
    ],
)
def test_bad_options_are_clear_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        step(network(), torch.randn(8, 32), options)


def test_an_override_that_matches_nothing_is_said() -> None:
    options = {"profile": "hot", "overrides": {"nosuch": "exact"}}
    with pytest.warns(UserWarning, match="'nosuch' matches no layer"):
        step(network(), torch.randn(24, 32), options)
    with pytest.raises(hadamard_fx.HadamardError, match="'nosuch' matches no layer"):
        hadamard_fx.explain(network(), options=options)(torch.randn(24, 32))


def test_explain_can_be_called_any_number_of_times() -> None:
    counts = [len(hadamard_fx.explain(network(), options=HOT)(torch.randn(64, 32)).reports) for _ in range(10)]
    assert counts == [1] * 10


def test_explain_raises_our_errors_as_they_are() -> None:
    with pytest.raises(hadamard_fx.HadamardError, match="no setting 'nope'"):
        hadamard_fx.explain(network(), options={"inductor": {"nope": 1}})(torch.randn(8, 32))


def test_explain_neither_trains_nor_generates_code() -> None:
    module, x = network(), torch.randn(64, 32)
    explanation = hadamard_fx.explain(module, loss=lambda y: y.sum(), options=HOT)(x)
    assert all(p.grad is None for p in module.parameters())
    (report,) = explanation.reports
    assert {d.gemm.role for d in report.plan.decisions} == {Role.FORWARD, Role.GRAD_INPUT, Role.GRAD_WEIGHT}
    assert report.saved_after is not None and report.saved_before is not None
    assert "grad_weight" in str(explanation)
    assert json.loads(explanation.to_json())[0]["schema"] == "hadamard_fx.report"


def test_convolutions_through_inductor() -> None:
    """Exact forward and exact g_x are Inductor's own, bit for bit; the other products are rounded in 8 bits."""

    def net() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(6, 16, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(16, 8, 3, bias=False))

    fine = {"bits": 8, "rounding": "nearest"}
    options = {"grad_input": fine, "grad_weight": {**fine, "rank": 16}, "overrides": {"0": {"grad_input": "exact"}}}
    found, expected = net(), net()
    x, same = (torch.randn(4, 6, 13, 9, generator=torch.Generator().manual_seed(2)).requires_grad_() for _ in range(2))
    y = step(found, x, {"profile": "hot", **options})
    z = torch.compile(expected, backend="inductor")(same)
    z.float().square().mean().backward()
    assert torch.equal(y, z)
    leaves = zip((x, *found.parameters()), (same, *expected.parameters()), strict=True)
    pairs = [(p.grad, q.grad) for p, q in leaves]
    ratios = [float((p - q).norm() / q.norm()) for p, q in pairs]  # type: ignore[operator, union-attr]
    assert 0 < max(ratios) < 0.05, ratios
    plan = hadamard_fx.reports()[-1].plan
    kept = [d.gemm.layer + d.gemm.role for d in plan.decisions if not d.rewritten]
    assert kept == ["0forward", "2forward", "0grad_input"]


@pytest.mark.parametrize("extent", [7, 15])
def test_folding_with_a_stride_is_right_behind_a_vector(extent: int) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1))
    x = torch.randn(4, 3, extent, extent)
    fine = {"grad_input": {"bits": 8, "rounding": "nearest"}, "grad_weight": {"rank": 16, "rounding": "nearest"}}
    module(x).square().mean().backward()
    (weight, *_) = module.parameters()
    assert weight.grad is not None
    exact, weight.grad = weight.grad.clone(), None
    torch.compile(module, backend=hadamard_fx.hadamard, options={"profile": "hot", **fine})(
        x
    ).square().mean().backward()
    assert float((weight.grad - exact).norm() / exact.norm()) < 0.02, "8 bits; wrong sums are 0.2 and more off"
