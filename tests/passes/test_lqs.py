"""What a calibration makes of the schemes that a policy asks for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import hadamard_fx
from hadamard_fx.cost_model.calibration import CalibratedProduct, Calibration, weight_extents
from hadamard_fx.cost_model.device_profile import profile_for
from hadamard_fx.cost_model.statistics import RANKS, Statistics
from hadamard_fx.options import Choice
from hadamard_fx.passes.expected_error import with_errors
from hadamard_fx.passes.lqs import LARGEST_ERROR, measured_schemes, refined
from hadamard_fx.passes.rule import rule_of
from hadamard_fx.plan import Exact, Gemm, Hadamard, LowRank, Role, Scheme, Size
from hadamard_fx.profiles import PROFILES, Profile

PROFILE = profile_for("cpu", "cpu_vnni")


def gemm(role: Role) -> Gemm:
    return Gemm("mm", role, "fc", Size(256), Size(256), Size(256), "float32", "cpu", "g", "x", gradient="left")


def calibration(role: Role, measured: dict[Scheme, float], **statistics: Any) -> Calibration:
    ready = tuple((rule_of(s).refine(s, gemm(role), PROFILE), error) for s, error in measured.items())
    product = CalibratedProduct("fc", role, weight_extents(gemm(role)), Statistics(**statistics), ready)
    return Calibration((product,), 1)


def forced(scheme: Scheme) -> Choice:
    return Choice((scheme,), False, "profile 'test'")


TOKEN, TENSOR = Hadamard(), Hadamard(scale="tensor")
CHANNEL, WHOLE = LowRank(signs="none"), LowRank(signs="none", scale="tensor")


@pytest.mark.parametrize(("token", "scale"), [(0.19, "token"), (0.21, "tensor")])
def test_a_scale_per_token_must_halve_the_error(token, scale):
    known = calibration(Role.GRAD_INPUT, {TOKEN: token, TENSOR: 0.4})
    for asked in (TOKEN, TENSOR):
        found = refined(forced(asked), gemm(Role.GRAD_INPUT), known, PROFILE)
        assert [scheme.scale for scheme in found.schemes] == [scale]
        note = found.note(found.schemes[0])
        assert ("" if asked.scale == scale else "scale per token") in note and bool(note) is (asked.scale != scale)


def test_what_a_cut_drops_is_no_matter_of_scales():
    dropped = tuple(0.16 * (16 - rank) / 8 for rank in RANKS)  # 0.4 of the result at rank 8
    measured = {CHANNEL: (0.16 + 0.01**2) ** 0.5, WHOLE: (0.16 + 0.03**2) ** 0.5, LowRank(rank=4, signs="none"): 0.6}
    found = refined(
        forced(CHANNEL), gemm(Role.GRAD_WEIGHT), calibration(Role.GRAD_WEIGHT, measured, dropped=dropped), PROFILE
    )
    assert found.schemes == (CHANNEL,)


def test_a_cut_that_loses_too_much_keeps_more():
    independent = calibration(Role.GRAD_WEIGHT, {})  # Gaussian operands: rank 8 of 16 leaves 0.7
    (scheme,) = refined(forced(CHANNEL), gemm(Role.GRAD_WEIGHT), independent, PROFILE).schemes
    assert isinstance(scheme, LowRank) and scheme.rank == 16
    assert independent.error(scheme, gemm(Role.GRAD_WEIGHT)) < 0.05
    found = refined(forced(CHANNEL), gemm(Role.GRAD_WEIGHT), independent, PROFILE)
    assert "rank 16 against an error beyond 0.5" in found.note(scheme)
    lenient = refined(forced(CHANNEL), gemm(Role.GRAD_WEIGHT), independent, PROFILE, max_error=0.8)
    assert lenient.schemes[0].rank == 8


def test_the_noise_of_random_signs_is_no_matter_of_scales_but_counts_against_the_bound():
    independent = calibration(Role.GRAD_WEIGHT, {CHANNEL: (0.5 + 0.01**2) ** 0.5, WHOLE: (0.5 + 0.03**2) ** 0.5})
    (lenient,) = refined(forced(LowRank()), gemm(Role.GRAD_WEIGHT), independent, PROFILE, max_error=1.1).schemes
    assert lenient == LowRank()
    found = refined(forced(LowRank()), gemm(Role.GRAD_WEIGHT), independent, PROFILE)
    assert found.schemes[0].rank == 16 and "rank 16" in found.note(found.schemes[0])


def test_tokens_that_are_alike_need_no_signs():
    for lost, signs in ((0.05**2, "none"), (0.3**2, "random")):
        known = calibration(Role.GRAD_WEIGHT, {}, dropped=(lost,) * len(RANKS), coherence=200.0)
        found = refined(forced(LowRank(scale="tensor")), gemm(Role.GRAD_WEIGHT), known, PROFILE)
        assert found.schemes[0].signs == signs
        assert ("tokens are alike" in found.note(found.schemes[0])) is (signs == "none")


def test_a_cut_that_loses_nothing_is_made_deeper():
    alike = calibration(Role.GRAD_WEIGHT, {}, dropped=(1e-6,) * len(RANKS))
    found = refined(forced(CHANNEL), gemm(Role.GRAD_WEIGHT), alike, PROFILE)
    assert found.schemes[0].rank == 2
    assert "rank 2 loses no more than 8" in found.note(found.schemes[0])


def test_bits_order_and_rounding_are_raised_in_turn_until_the_error_fits():
    def with_error(limit: float) -> tuple[Hadamard, str]:
        known = calibration(
            Role.GRAD_INPUT, {TOKEN: 0.9, TENSOR: 2.0, Hadamard(bits=8): 0.6, Hadamard(bits=8, order=64): 0.3}
        )
        found = refined(forced(TOKEN), gemm(Role.GRAD_INPUT), known, PROFILE, max_error=limit)
        return found.schemes[0], found.note(found.schemes[0])

    assert with_error(1.0) == (TOKEN, "")
    assert with_error(0.7)[0] == Hadamard(bits=8)
    assert with_error(0.4)[0] == Hadamard(bits=8, order=64)
    assert "8 bits and order 64 against an error beyond 0.4" in with_error(0.4)[1]


def test_rounding_to_nearest_is_the_last_resort():
    product = gemm(Role.GRAD_INPUT)
    asked = Hadamard(bits=8, order=128)
    known = calibration(
        Role.GRAD_INPUT,
        {
            asked: 0.7,
            Hadamard(bits=8, order=128, scale="tensor"): 2.0,
            Hadamard(bits=8, order=128, rounding="nearest"): 0.4,
        },
    )
    (scheme,) = refined(forced(asked), product, known, PROFILE).schemes
    assert scheme == Hadamard(bits=8, order=128, rounding="nearest")


def test_where_nothing_helps_the_most_exact_is_forced_and_a_price_refuses_it():
    ladder = {
        TOKEN: 0.9,
        TENSOR: 2.0,
        **{Hadamard(bits=8, order=order): 0.8 for order in (16, 64, 128)},
        Hadamard(bits=8, rounding="nearest"): 0.7,
    }
    known = calibration(Role.GRAD_INPUT, ladder)
    (scheme,) = refined(forced(TOKEN), gemm(Role.GRAD_INPUT), known, PROFILE).schemes
    assert scheme == Hadamard(bits=8, rounding="nearest")
    priced = refined(Choice((Exact(), TOKEN), True, "profile 'auto'"), gemm(Role.GRAD_INPUT), known, PROFILE)
    assert priced.schemes == (Exact(),)
    assert {scheme for scheme, _ in priced.refused} == {scheme, TOKEN}
    assert all("beyond 0.5" in why for _, why in priced.refused)


def test_prices_may_choose_between_the_original_and_the_fitted_scheme():
    known = calibration(Role.GRAD_INPUT, {TOKEN: 0.3, TENSOR: 0.4})
    found = refined(Choice((Exact(), TOKEN), True, "profile 'auto'"), gemm(Role.GRAD_INPUT), known, PROFILE)
    assert found.schemes == (Exact(), TOKEN, TENSOR)  # the more exact one first


def test_what_the_user_wrote_is_left_as_it_is():
    known = calibration(Role.GRAD_WEIGHT, {})
    written = Choice((CHANNEL,), False, "option 'grad_weight'", written=True)
    assert refined(written, gemm(Role.GRAD_WEIGHT), known, PROFILE) is written
    policy = hadamard_fx.Policy.resolve({"grad_weight": {"rank": 8}, "overrides": {"fc": {"grad_input": {"bits": 8}}}})
    assert policy.choice("fc", Role.GRAD_INPUT).written and policy.choice("other", Role.GRAD_WEIGHT).written
    assert not policy.choice("other", Role.GRAD_INPUT).written


def test_without_a_calibration_nothing_changes():
    choice = forced(CHANNEL)
    assert refined(choice, gemm(Role.GRAD_WEIGHT), None, PROFILE) is choice
    elsewhere = calibration(Role.GRAD_INPUT, {})
    assert refined(choice, gemm(Role.GRAD_WEIGHT), elsewhere, PROFILE) is choice


def test_every_scheme_of_every_profile_is_measured():
    for profile in PROFILES.values():
        for role in (Role.FORWARD, Role.GRAD_INPUT, Role.GRAD_WEIGHT):
            wanted = {scheme for scheme in profile.schemes(role) if not isinstance(scheme, Exact)}
            assert wanted <= set(measured_schemes(role))


def test_the_report_shows_both_errors_and_the_reason():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
    x, target = torch.randn(256, 64), torch.randn(256, 64)

    def loss(model: Any, batch: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(model(batch), target)

    known = hadamard_fx.calibrate(model, [x], loss)
    options = {"profile": "hot", "calibration": known}
    explanation = hadamard_fx.explain(model, loss=lambda y: nn.functional.mse_loss(y, target), options=options)(x)
    decisions = explanation.reports[0].plan.rewrites()
    ranks = {d.gemm.layer: d.scheme for d in decisions if d.gemm.role is Role.GRAD_WEIGHT}
    assert ranks["0"].rank >= 12  # the rows of a batch are independent of each other
    for decision in decisions:
        assert 0 < decision.cost.error <= LARGEST_ERROR
        assert decision.measured_error is None or decision.measured_error == pytest.approx(
            decision.cost.error, rel=0.25
        )
    assert any(d.measured_error is not None for d in decisions)
    text = explanation.text(details=True)
    assert "predicted" in text and "measured" in text and "calibrated: " in text and "rank 1" in text
    report = explanation.reports[0]
    assert type(report).from_json(report.to_json()).plan == report.plan
    plain = hadamard_fx.explain(model, loss=lambda y: y.sum(), options={"profile": "hot"})(x).reports[0].plan
    assert all(d.cost.error is not None and d.measured_error is None for d in plain.rewrites())


def test_a_scheme_of_ones_own_is_measured_though_nobody_predicts_it(monkeypatch, load):
    Luq = load("luq.py").Luq
    mine = Profile("mine", "LUQ in both gradients", (Luq(),), (Luq(),), priced=False)
    monkeypatch.setitem(PROFILES, "mine", mine)
    model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)), torch.randn(128, 64)
    known = hadamard_fx.calibrate(model, [x], lambda model, batch: model(batch).square().mean())
    options = {"profile": "mine", "calibration": known}
    explanation = hadamard_fx.explain(model, loss=lambda y: y.square().mean(), options=options)(x)
    for decision in explanation.reports[0].plan.rewrites():
        assert decision.scheme == Luq() and decision.cost.error is None
        assert 0.02 < decision.measured_error < 0.5
    assert "% measured" in explanation.text(details=True)


def test_a_calibrated_model_trains_nearer_to_the_exact_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    x, target = torch.randn(256, 64), torch.randn(256, 64)

    def gradient(function: Any) -> torch.Tensor:
        model.zero_grad()
        nn.functional.mse_loss(function(x), target).backward()
        return model[0].weight.grad.clone()

    exact = gradient(model)
    known = hadamard_fx.calibrate(model, [x], lambda model, batch: nn.functional.mse_loss(model(batch), target))
    off = []
    for options in ({"profile": "hot"}, {"profile": "hot", "calibration": known}):
        compiled = torch.compile(model, backend="hadamard", options=options)
        off.append(float((gradient(compiled) - exact).norm() / exact.norm()))
    assert off[1] < LARGEST_ERROR < off[0]


def test_a_prediction_that_a_rule_made_is_kept():
    from dataclasses import replace

    report = hadamard_fx.explain(nn.Linear(64, 64), loss=lambda y: y.sum(), options={"profile": "hot"})
    decision = report(torch.randn(64, 64, requires_grad=True)).reports[0].plan.rewrites()[0]
    own = replace(decision, cost=replace(decision.cost, error=0.123))
    assert with_errors(own, None) == own


def test_recalibration_compiles_again_only_where_a_decision_changes():
    torch.manual_seed(0)
    model = nn.Linear(64, 64)
    target = torch.randn(256, 64)

    def loss(model: Any, batch: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(model(batch), target)

    recalibration = hadamard_fx.Recalibration(model, loss, every=2, options={"profile": "hot"})
    independent, alike = torch.randn(256, 64), torch.randn(1, 64).expand(256, 64) + 0.001 * torch.randn(256, 64)
    compiled = [recalibration(independent) for _ in range(4)]
    assert all(function is compiled[0] for function in compiled) and recalibration.compilations == 1
    first = recalibration.calibration
    loss(compiled[0], independent).backward()
    assert model.weight.grad is not None
    target = target.mean(0, keepdim=True).expand(256, 64)
    assert recalibration(alike) is not compiled[0]
    assert recalibration.compilations == 2 and recalibration.calibration != first
    loss(recalibration(alike), alike).backward()
    plan = hadamard_fx.reports()[-1].plan
    assert [d.scheme.rank for d in plan.rewrites() if d.gemm.role is Role.GRAD_WEIGHT] != [16]


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_recalibration_refuses_other_intervals(every):
    with pytest.raises(hadamard_fx.errors.CalibrationError, match="number of steps"):
        hadamard_fx.Recalibration(nn.Linear(4, 4), lambda model, batch: model(batch).sum(), every=every)


def test_recalibration_makes_the_calibration_itself():
    with pytest.raises(hadamard_fx.errors.OptionError, match="leave 'calibration' out"):
        hadamard_fx.Recalibration(
            nn.Linear(4, 4), lambda model, batch: model(batch).sum(), every=1, options={"calibration": "x.json"}
        )
