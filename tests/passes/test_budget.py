"""Memory budgets, error bounds and objectives on whole graphs; bytes as the partition counts them."""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import hadamard_fx
from hadamard_fx.cost_model.device_profile import profile_for
from hadamard_fx.errors import BudgetError, ReportError
from hadamard_fx.plan import Role

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example(name: str) -> Any:
    """A module of the examples."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Block, saved_bytes = example("vit").Block, example("saved_tensors").saved_bytes

MODELS: dict[str, Any] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 64)),
            (256, 64)),
    "transformer block": (lambda: Block(64, heads=4), (2, 64, 64)),
}  # fmt: skip


def report(name: str, options: dict[str, Any]) -> Any:
    torch._dynamo.reset()
    torch.manual_seed(0)
    build, shape = MODELS[name]
    x = torch.randn(*shape, requires_grad=True)
    options = {"device_profile": "cpu_vnni", **options}
    return hadamard_fx.explain(build(), loss=lambda y: y.square().mean(), options=options)(x).reports[0]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("profile", ["auto", "hot"])
def test_budgets_are_kept_and_monotone(name: str, profile: str) -> None:
    shares = []
    for budget in (0.8, 0.6, 0.4):
        found = report(name, {"profile": profile, "memory_budget": budget})
        shares.append(found.saved_after / found.saved_before)
        assert shares[-1] <= budget + 0.02
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_foreseen_is_what_compiled_code_keeps(name: str) -> None:
    torch.manual_seed(0)
    build, shape = MODELS[name]
    model, x = build(), torch.randn(*shape, requires_grad=True)
    for options in ({"profile": "hot"}, {"profile": "exact"}, {"profile": "hot", "memory_budget": 0.4}):
        torch._dynamo.reset()
        compiled = torch.compile(copy.deepcopy(model), backend="hadamard", options=options)
        kept = saved_bytes(compiled(x), compiled.parameters())
        assert kept == hadamard_fx.reports()[-1].saved_after


def test_rebuilding_is_told() -> None:
    found = report("transformer block", {"profile": "hot", "memory_budget": 0.4})
    assert found.plan.activation_budget < 1
    assert any("activations are rebuilt" in warning for warning in found.warnings)
    assert not report("transformer block", {"profile": "hot"}).warnings


def test_an_infeasible_budget_names_the_nearest_feasible_one() -> None:
    with pytest.raises(BudgetError, match=r"memory_budget = 1e-05 cannot be kept: with profile 'hot'") as caught:
        report("mlp", {"profile": "hot", "memory_budget": 1e-5})
    nearest = caught.value.nearest
    found = report("mlp", {"profile": "hot", "memory_budget": nearest})
    assert found.saved_after <= nearest * found.saved_before


def test_max_error_bounds_every_product() -> None:
    free, bound = report("mlp", {"objective": "memory"}), report("mlp", {"objective": "memory", "max_error": 0.1})
    assert max(d.cost.error for d in free.plan.decisions) > 0.1
    assert max(d.cost.error for d in bound.plan.decisions) <= 0.1
    refused = [c.reason for d in bound.plan.decisions for c in d.rejected]
    assert any("would exceed max_error = 0.1" in reason for reason in refused)


def test_the_objective_memory_keeps_no_more_than_time() -> None:
    time, memory = (report("transformer block", {"objective": objective}) for objective in ("time", "memory"))
    assert memory.saved_after <= time.saved_after


def test_a_formula_has_the_price_and_the_symbols() -> None:
    model = nn.Linear(256, 512)
    x = torch.randn(512, 256)
    torch._dynamo.mark_dynamic(x, 0)
    found = hadamard_fx.explain(model, loss=lambda y: y.sum(), options={"profile": "hot"})(x).reports[0]
    (decision,) = [d for d in found.plan.decisions if d.gemm.role is Role.GRAD_WEIGHT]
    formula = found.formula(decision.gemm)
    assert "rate_int8" in str(formula) and "M" in str(formula)
    assert decision.gemm.K.symbol in {symbol.name for symbol in formula.in_symbols().free_symbols}
    assert formula.seconds(profile_for("cpu")) == pytest.approx(decision.cost.seconds)
    with pytest.raises(ReportError, match="no product 'absent'"):
        found.formula("absent")
