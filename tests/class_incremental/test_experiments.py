"""The experiments on HDQT under ``benchmarks``: what they vary, and that they run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import hdqt_accumulators  # noqa: E402  scripts, no package: found on the path only
import hdqt_rounding  # noqa: E402

import hadamard_fx  # noqa: E402
from hadamard_fx.saturating import SaturatingGradInput, SaturatingGradWeight  # noqa: E402


def roundings(name: str) -> tuple[str, ...]:
    policy = hadamard_fx.Policy.resolve(hdqt_rounding.contenders()[name])
    g_x, g_w = policy.grad_input, policy.grad_weight
    assert isinstance(g_x, SaturatingGradInput) and isinstance(g_w, SaturatingGradWeight)
    return g_x.rounding, g_x.weight_rounding, g_w.rounding, g_w.input_rounding


def test_roundings_are_what_they_are_called() -> None:
    s, n = "stochastic", "nearest"
    profile = hadamard_fx.Policy.resolve({"profile": "hdqt"}).profile
    published = hadamard_fx.Policy.resolve(hdqt_rounding.contenders()["as published"])
    assert (published.grad_input,) == profile.grad_input and (published.grad_weight,) == profile.grad_weight
    assert roundings("as published") == (s, n, s, s)
    assert roundings("g for g_x nearest") == (n, n, s, s)
    assert roundings("w for g_x stochastic") == (s, s, s, s)
    assert roundings("only x for g_w stochastic") == (n, n, n, s)
    assert roundings("all nearest") == (n, n, n, n)
    everything = [roundings(name) for name in hdqt_rounding.contenders() if name != "exact"]
    assert len(set(everything)) == len(everything) == 10


def test_narrow_sums_saturate_and_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--quick", "--device", "cpu", "--bits", "4,16", "--tiles", "32", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["hdqt_accumulators.py", *arguments])
    assert hdqt_accumulators.main() == 0
    (written,) = tmp_path.glob("hdqt_accumulators-cpu-*-quick.json")
    found = json.loads(written.read_text(encoding="utf-8"))
    exact, narrow, wide = found["rows"]
    assert exact["forward, % cut"] is None
    assert narrow["forward, % cut"] > 20
    # 32 products of a signed and an unsigned 4-bit number are at most 32 · 7 · 15, which 16 bits hold.
    assert wide["forward, % cut"] == 0
    assert len(found["accuracies"]) == 3 and found["settings"]["epochs"] == 1


def test_unknown_methods_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        hdqt_rounding.main(["--methods", "LwF,EWC", "--out", str(tmp_path)])
    assert "unknown methods EWC; known: BiC, DER" in capsys.readouterr().err
