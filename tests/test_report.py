"""The report: JSON both ways, the text as a golden file, grouping, the store."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from hadamard_fx.errors import ReportError
from hadamard_fx.plan import Candidate, Cost, Decision, Gemm, Plan, Role, Size
from hadamard_fx.policy import Policy
from hadamard_fx.report import Report, load, save
from hadamard_fx.report.grouping import group_layers, merge_names
from hadamard_fx.report.units import format_bytes, format_seconds
from hadamard_fx.scheme import Exact, Hadamard, LowRank

GOLDEN = Path(__file__).parent / "golden"
TOKENS = Size(50432, "s27*s77")


def decision(role: Role, layer: str, sizes: tuple[Size, Size, Size], scheme, reason: str, rejected=()) -> Decision:
    M, N, K = sizes
    exact = Cost(2 * M.hint * N.hint * K.hint / 7e14, 2 * K.hint * N.hint if role is Role.GRAD_WEIGHT else 0, 0.0)
    cost = exact if isinstance(scheme, Exact) else Cost(exact.seconds * 0.6, exact.saved_bytes // 4)
    gemm = Gemm(
        node=f"mm_{role}_{layer}",
        role=role,
        layer=layer,
        M=M,
        N=N,
        K=K,
        dtype="bfloat16",
        device="cuda",
        left="gelu",
        right="permute",
        weight=f"{layer}.weight",
        source="model.py:12 in forward, x = self.fc1(x)",
    )
    return Decision(gemm, scheme, cost, exact, reason, rejected)


def layer(name: str, out: int, inner: int, exact: bool = False) -> list[Decision]:
    rows, columns = Size(out), Size(inner)
    forced = "profile 'hot' asks for it"
    grad_input = Exact() if exact else Hadamard(carrier="float8_e4m3")
    why = r"override 'blocks\.0\..*' asks for it" if exact else forced
    slower = (Candidate(Hadamard(), "predicted slower than the choice", Cost(3e-4)),)
    return [
        decision(Role.FORWARD, name, (TOKENS, rows, columns), Exact(), "the forward stays in full precision"),
        decision(Role.GRAD_WEIGHT, name, (rows, columns, TOKENS), LowRank(), forced),
        decision(Role.GRAD_INPUT, name, (TOKENS, columns, rows), grad_input, why, () if exact else slower),
    ]


@pytest.fixture
def report() -> Report:
    decisions = [d for i in range(4) for d in layer(f"blocks.{i}.mlp.fc1", 3072, 768, exact=i == 0)]
    scores = decision(Role.ACTIVATION, "blocks.0.attn", (Size(197), Size(197), Size(64)), Exact(), "no weight")
    decisions.append(replace(scores, gemm=replace(scores.gemm, batch=Size(3072))))
    options = {"profile": "hot", "overrides": {r"blocks\.0\..*": {"grad_input": "exact"}}}
    return Report(
        plan=Plan(
            tuple(decisions), "h200", settings=Policy.resolve(options, environ={}, directory=Path(os.sep)).settings
        ),
        name="graph 0",
        versions={"hadamard_fx": "0.1.0", "torch": "2.13.0", "triton": "not installed", "python": "3.12.1"},
        device="NVIDIA H200",
        saved_before=3 << 30,
        saved_after=2 << 30,
        saved=(("compress_tokens", 18 << 20, "blocks.0.mlp.fc1"), ("gelu", 300 << 20, "")),
        warnings=("an example of a warning",),
    )


def test_json_both_ways(report):
    text = report.to_json()
    assert Report.from_json(text) == report
    data = json.loads(text)
    assert (data["schema"], data["version"]) == ("hadamard_fx.report", 1)
    assert data["totals"]["rewritten"] == 7
    assert data["totals"]["predicted_seconds"] == pytest.approx(sum(d.cost.seconds for d in report.plan.decisions))
    assert data["plan"]["settings"]["profile"] == {"value": "hot", "from": "options"}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"schema": "other"}, "no report of hadamard-fx"),
        ({"version": 2}, "schema version 2, this release reads 1"),
        ({"plan": {}}, "the report is damaged"),
        ({"saved": [{}]}, "the report is damaged"),
    ],
)
def test_foreign_json(report, change, text):
    with pytest.raises(ReportError, match=text):
        Report.from_json(json.dumps({**report.as_dict(), **change}))


@pytest.mark.parametrize("text", ["", "[]", "null", "{"])
def test_no_report_at_all(text):
    with pytest.raises(ReportError):
        Report.from_json(text)


@pytest.mark.parametrize(("name", "details"), [("report", False), ("details", True)])
def test_golden_text(report, name, details):
    """After a wanted change: UPDATE_GOLDEN=1 pytest tests/test_report.py, then read the difference."""
    path = GOLDEN / f"{name}.txt"
    found = report.text(width=100, details=details) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_text_keeps_to_the_width(report, width):
    text = report.text(width=width)
    assert max(map(len, text.splitlines())) <= width
    assert ("if exact  why" in text) == (width >= 100)


def test_text_says_what_matters(report):
    text = report.text(width=100)
    assert "7 of 13 rewritten" in text
    assert "3.0 GiB if exact → 2.0 GiB  (−33 %)" in text
    assert "blocks.1–3.mlp.fc1 (3 layers)" in text
    assert "profile = hot" in text
    assert "from the options" in text
    assert "not installed" not in text


def test_nothing_measured_nothing_claimed(report):
    text = replace(report, saved_before=None, saved_after=None).text(width=100)
    assert "saved for backward, whole graph" not in text
    assert "No matrix product was found" in Report(Plan(())).text(width=100)


def test_columns_add_up(report):
    rows = [row for group in group_layers(report.plan.decisions) for row in group.rows]
    assert sum(row.seconds for row in rows) == pytest.approx(report.seconds)
    assert sum(len(row.decisions) for row in rows) == len(report.plan.decisions)


@pytest.mark.parametrize(
    ("names", "merged"),
    [
        (("a.0.b", "a.1.b", "a.3.b"), ("a.0–1.b", "a.3.b")),
        (("a.9", "a.10", "a.11"), ("a.9–11",)),
        (("a.0.1", "a.1.0"), ("a.0.1", "a.1.0")),
        (("conv1", "conv2"), ("conv1", "conv2")),
        (("a.0.fc",), ("a.0.fc",)),
        (("",), ("",)),
        ((), ()),
    ],
)
def test_merge_names(names, merged):
    assert merge_names(names) == merged


def test_same_layer_with_two_equal_products_keeps_both(report):
    one = report.plan.decisions[0]
    (group,) = group_layers([one, replace(one, gemm=replace(one.gemm, node="again"))])
    assert [len(row.decisions) for row in group.rows] == [2]
    assert group.title == "blocks.0.mlp.fc1"


def test_units():
    assert [format_seconds(s) for s in (0, 1.5e-6, 9.996e-6, 0.0009996, 0.0123, 2.5, 1234)] == [
        "0.00 µs",
        "1.50 µs",
        "10.0 µs",
        "1.00 ms",
        "12.3 ms",
        "2.50 s",
        "1234 s",
    ]
    assert [format_bytes(b) for b in (0, 12, 1000, 1 << 20, 300 << 20, 5 << 40)] == [
        "–",
        "12 B",
        "1.0 KiB",
        "1.0 MiB",
        "300 MiB",
        "5.0 TiB",
    ]


def test_store(report, tmp_path):
    folder = tmp_path / "reports"
    assert load(folder, "abc") is None
    path = save(folder, "abc", report)
    assert path == folder / "abc.json"
    assert load(folder, "abc") == report
    assert [p.name for p in folder.iterdir()] == ["abc.json"]  # no temporary file stays
    path.write_text("{")
    assert load(folder, "abc") is None


def test_store_survives_what_it_cannot_write(report, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert save(tmp_path / "file", "abc", report) is None
    assert "cannot keep the report" in caplog.text


@pytest.mark.parametrize("key", ["../x", "", "a/b"])
def test_store_refuses_paths_as_keys(report, tmp_path, key):
    with pytest.raises(ReportError, match="key"):
        save(tmp_path, key, report)
