"""One read of a gradient against separate kernels: a matter of price."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hadamard_fx.cost_model.device_profile import DeviceProfile, profile_for
from hadamard_fx.passes.choose import ChooseSchemes
from hadamard_fx.passes.one_read import OneRead
from hadamard_fx.plan import Decision, Gemm, Role, Size
from hadamard_fx.policy import Policy

H200 = profile_for("cuda", "h200")


def choose(tokens: int, out: int, into: int, profile: DeviceProfile, fused: int | None = None) -> tuple[Decision, ...]:
    """g_x and g_w of one bf16 layer under profile ``hot``; ``fused``: bytes where the producers can be evaluated."""
    t, o, i = Size(tokens), Size(out), Size(into)
    g_x = Gemm("g_x", Role.GRAD_INPUT, "fc", t, i, o, "bfloat16", "cuda", "g", "w", gradient="left", weight="w")
    g_w = Gemm("g_w", Role.GRAD_WEIGHT, "fc", o, i, t, "bfloat16", "cuda", "g", "x", gradient="left", weight="w")
    stored = 2 * tokens * out
    read = OneRead("g", "g_x", "g_w", tokens, out, stored, stored, fused, 20)
    policy = Policy.resolve({"profile": "hot"}, environ={}, directory="/")
    return ChooseSchemes(policy, profile).choose((g_x, g_w), (read,)).decisions


def groups(decisions: tuple[Decision, ...]) -> list[int]:
    return [decision.scheme.group for decision in decisions]  # type: ignore[attr-defined]


def test_a_read_with_producers_is_worth_groups() -> None:
    decisions = choose(50432, 3072, 768, H200, fused=2 * 50432 * 3072)
    assert groups(decisions) == [128, 256]
    assert all("one read of the gradient" in decision.reason for decision in decisions)


def test_slow_rescaling_makes_separate_kernels_the_choice() -> None:
    slow = replace(H200, rescales={"int8": 1e11, "float8": 1e11})
    decisions = choose(50432, 3072, 768, slow, fused=2 * 50432 * 3072)
    assert groups(decisions) == [0, 0]
    assert not any("one read" in decision.reason for decision in decisions)


def test_the_saving_is_in_the_price() -> None:
    apart = replace(H200, rates={**H200.rates, "one_read": 1e12})
    once = sum(d.cost.seconds for d in choose(50432, 3072, 768, H200, fused=2 * 50432 * 3072))
    assert once < sum(d.cost.seconds for d in choose(50432, 3072, 768, apart, fused=2 * 50432 * 3072))


def test_one_compressed_x_is_paid_once() -> None:
    t, o = Size(16384), Size(2048)
    products = tuple(
        Gemm(f"g_w{n}", Role.GRAD_WEIGHT, f"{n}", o, o, t, "bfloat16", "cuda", f"g{n}", "x", gradient="left", weight=n)
        for n in "qkv"
    )
    policy = Policy.resolve({"profile": "hot"}, environ={}, directory="/")
    together = ChooseSchemes(policy, H200).decide(products)
    (alone,) = ChooseSchemes(policy, H200).decide(products[:1])
    # In groups or not, the scales differ by a few bytes.
    assert sum(d.cost.saved_bytes for d in together) == pytest.approx(alone.cost.saved_bytes, rel=0.04)
    assert sum(d.cost.seconds for d in together) < 3 * alone.cost.seconds
