"""LUQ as a scheme of one's own: its grids against the equations, its roundings against their expected values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.utils.checkpoint
from harness import gradients, traced
from torch import nn

import hadamard_fx
from hadamard_fx import compat
from hadamard_fx.plan import Exact, Role

Load = Callable[[Path | str], ModuleType]
LUQ = {role: {"kind": "luq"} for role in ("forward", "grad_input", "grad_weight")}

DRAWS = 1 << 18
LIMIT = 4.75
"""Standard errors that a mean may be off. Of the 160 means below one exceeds it by chance in 3 runs of 10⁴ at most;
seeds are fixed, so that a run either always passes or never does.

Power: a rounding between neighbours one step apart has a standard deviation of at most half a step, and one of the mean
of at most 0.001 steps here. A bias of 0.01 steps is thus 10 of them or more, found with probability 1 − 10⁻⁷."""


@pytest.fixture
def luq(load: Load) -> ModuleType:
    return load("luq.py")


def worst(rounding: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], values: torch.Tensor) -> float:
    """Largest distance of a mean from its value, in standard errors of the mean."""
    generator = torch.Generator().manual_seed(0)
    total, squares = torch.zeros(2, len(values), dtype=torch.float64)
    for _ in range(16):
        tile = values.expand(DRAWS // 16, -1)
        error = rounding(tile, torch.rand(tile.shape, generator=generator)).double() - values.double()
        total += error.sum(0)
        squares += error.square().sum(0)
    deviation = (squares / DRAWS - (total / DRAWS).square()).sqrt()
    # A value on the grid does not move; float32 may draw the line next to it once in 2²⁴ times.
    return float((total.abs() / DRAWS / torch.clamp(deviation / DRAWS**0.5, min=1e-7)).max())


def spread() -> torch.Tensor:
    """160 values of both signs over 12 octaves, four of them below the smallest level; the largest sets the grid."""
    magnitudes = torch.logspace(-6, 6, 81, base=2)[:-1]
    return torch.cat([magnitudes, -magnitudes[:-1], torch.tensor([64.0])])


def test_luq_is_unbiased(luq: ModuleType) -> None:
    assert worst(luq.luq, spread()) < LIMIT


def test_a_biased_rounding_would_be_found(luq: ModuleType) -> None:
    """The power that is stated above: 1 % of a step, above and below the smallest level."""

    def up(g: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
        rounded: torch.Tensor = luq.luq(g, torch.clamp(uniform - 0.01, min=0))
        return rounded

    assert worst(up, spread()) > 2 * LIMIT
    assert worst(up, torch.tensor([0.02, 64.0])) > 2 * LIMIT, "underflow"


def test_luq_gives_neighbours_on_the_logarithmic_grid(luq: ModuleType) -> None:
    g = torch.randn(1 << 14) * torch.randn(1 << 14).exp()
    found = luq.luq(g, torch.rand(1 << 14))
    smallest = g.abs().max() / 64
    grid = torch.cat([torch.zeros(1), smallest * 2.0 ** torch.arange(7)])
    below = torch.searchsorted(grid, g.abs().contiguous(), right=True) - 1
    above = torch.clamp(below + 1, max=7)
    assert torch.equal(found.abs(), torch.where(found.abs() <= grid[below], grid[below], grid[above]))
    assert (found * g >= 0).all()
    assert len(found.abs().unique()) == 8


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_bad_numbers_never_become_plausible(luq: ModuleType, bad: float) -> None:
    g = torch.randn(64)
    g[3] = bad
    assert not luq.luq(g, torch.rand(64))[3].isfinite()
    assert not luq.sawb(g).isfinite().any()


@pytest.mark.parametrize("shape", [(0, 4), (1,), (3, 5)])
def test_zeros_stay_zero(luq: ModuleType, shape: tuple[int, ...]) -> None:
    g = torch.zeros(shape)
    if g.numel():
        assert torch.equal(luq.luq(g, torch.rand(shape)), g) and torch.equal(luq.sawb(g), g)


def bells() -> Iterator[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(1 << 16, generator=generator) * 2 - 1
    yield "normal", torch.randn(1 << 16, generator=generator)
    yield "uniform", uniform
    yield "logistic", torch.logit((uniform + 1) / 2, eps=1e-6)
    yield "triangular", uniform + torch.rand(1 << 16, generator=generator) * 2 - 1


@pytest.mark.parametrize(("name", "x"), [*bells()], ids=lambda value: value if isinstance(value, str) else "")
def test_sawb_is_close_to_the_best_clip(luq: ModuleType, name: str, x: torch.Tensor) -> None:
    """The coefficients are a fit of the best clip: with either 5 % off, a normal or uniform x leaves the bound."""

    def error(clip: float) -> float:
        step = clip / 7
        return float((torch.clamp(torch.round(x / step), -7, 7) * step - x).square().mean())

    best = min(error(float(x.abs().max()) * i / 100) for i in range(10, 101))
    found = float((luq.sawb(x) - x).square().mean())
    print(f"{name}: {found / best:.3f} of the least mean square error")
    assert found < 1.12 * best
    assert len(luq.sawb(x).unique()) == 15


@pytest.mark.parametrize("x", [torch.tensor([2.0, -2.0, 2.0]), torch.tensor([3.0])])
def test_sawb_keeps_what_has_one_magnitude(luq: ModuleType, x: torch.Tensor) -> None:
    torch.testing.assert_close(luq.sawb(x), x)


def test_the_chooser_prices_it_and_turns_it_down(luq: ModuleType) -> None:
    from hadamard_fx.policy import Profile, register_profile
    from hadamard_fx.profiles import PROFILES

    scheme = (Exact(), luq.Luq())
    register_profile(Profile("with-luq", "LUQ where it pays", scheme, scheme, priced=True))
    try:
        _, trace = run({"profile": "with-luq"})
    finally:
        del PROFILES["with-luq"]
    decisions = [d for d in trace.decisions if d.gemm.role is not Role.FORWARD]
    assert decisions
    for decision in decisions:
        (other,) = decision.rejected
        assert isinstance(decision.scheme, Exact) and isinstance(other.scheme, luq.Luq)
        assert other.cost is not None and other.cost.seconds > decision.exact_cost.seconds
        assert "no gain predicted" in other.reason


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 40), nn.Tanh(), nn.Linear(40, 8, bias=False))


def run(options: dict[str, object], **kwargs: object):  # type: ignore[no-untyped-def]
    module = network()
    function, trace = traced(module, options, **kwargs)
    return gradients(function, module, torch.randn(50, 24, requires_grad=True)), trace


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.usefixtures("luq")
def test_the_rewrite_rounds_each_operand_once(dynamic: bool) -> None:
    _, trace = run(LUQ, dynamic=dynamic)
    assert [d.rewritten for d in trace.decisions] == [True] * 6
    backward = trace.backward[0].graph
    draws = [node for node in backward.nodes if node.target is compat.random_op]
    assert len(draws) == 2, "one for each g_y: g_x and g_w see the same integers"
    assert not [node for node in trace.forward[0].graph.nodes if node.target is compat.random_op]


@pytest.mark.usefixtures("luq")
def test_a_checkpointed_region_keeps_its_input_only() -> None:
    class Region(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.utils.checkpoint.checkpoint(self.inner, x * 2, use_reentrant=False)

    saved = []
    for options in ({"profile": "exact"}, LUQ):
        module = Region()
        function, trace = traced(module, options)
        found = gradients(function, module, torch.randn(50, 24, requires_grad=True))
        assert all(gradient.isfinite().all() for gradient in found.values())
        saved.append(sum(tensor.bytes for tensor in trace.pipelines[0].saved))
    assert saved[1] <= saved[0]


@pytest.mark.usefixtures("luq")
def test_autocast() -> None:
    module, x = network(), torch.randn(50, 24)
    function, trace = traced(module, LUQ)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = function(x)
    y.float().square().mean().backward()
    assert {d.gemm.dtype for d in trace.decisions if d.rewritten} == {"bfloat16"}
    assert y.dtype is torch.bfloat16 and module[0].weight.grad.isfinite().all()


def test_the_forward_is_the_formula(luq: ModuleType) -> None:
    module, x = network(), torch.randn(50, 24)
    function, _ = traced(module, {"forward": {"kind": "luq"}, "profile": "exact"})
    first, _, last = module
    hidden = torch.tanh(luq.sawb(x) @ luq.sawb(first.weight).t() + first.bias)
    torch.testing.assert_close(function(x), luq.sawb(hidden) @ luq.sawb(last.weight).t())


def test_the_gradients_are_unbiased(luq: ModuleType) -> None:
    """E[g_w] = g_yᵀ SAWB(x) and E[g_x] = g_y SAWB(w), over 400 steps.

    Power, element by element: a bias of 0.35 standard deviations is 7 standard errors of the mean, found with
    probability 0.977; one of 768 elements exceeds the limit by chance in 4 runs of 10⁴. Along the gradient itself: the
    limit is below 0.6 %, so that a gradient 1 % too short is found with probability 0.99.
    """
    torch.manual_seed(3)
    layer, x, g = nn.Linear(16, 16, bias=False), torch.randn(32, 16, requires_grad=True), torch.randn(32, 16)
    function, _ = traced(layer, {"grad_input": {"kind": "luq"}, "grad_weight": {"kind": "luq"}})
    function(x)
    expected = torch.cat([(g.t() @ luq.sawb(x)).flatten(), (g @ luq.sawb(layer.weight)).flatten()]).detach()
    found = torch.stack([torch.cat([t.flatten() for t in step(function, layer, x, g)]) for _ in range(400)]).double()
    errors = (found.mean(0) - expected) / (found.std(0) / 20)
    assert errors.abs().max() < 5
    share = found @ expected.double() / expected.double().square().sum()
    limit = 4 * float(share.std()) / 20
    print(f"the gradient's length is off by {float(share.mean()) - 1:.5f}, limit {limit:.5f}")
    assert abs(float(share.mean()) - 1) < limit < 0.006


def step(
    function: Callable[..., torch.Tensor], layer: nn.Linear, x: torch.Tensor, g: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(function(x), (layer.weight, x), g)


def test_through_inductor_the_draws_follow_the_seed(luq: ModuleType) -> None:
    torch._dynamo.reset()
    module, x = network(), torch.randn(50, 24)
    compiled = torch.compile(module, backend=hadamard_fx.hadamard, options=LUQ)

    def gradient() -> torch.Tensor:
        return torch.autograd.grad(compiled(x).square().mean(), module[0].weight)[0]

    gradient()
    torch.manual_seed(5)
    first, second = gradient(), gradient()
    torch.manual_seed(5)
    assert torch.equal(gradient(), first)
    assert not torch.equal(first, second)
