"""What differs between two reports, and the command that shows reports."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from made_reports import report_of

from hadamard_fx.cli import main
from hadamard_fx.plan import Cost, Plan
from hadamard_fx.report.diff import compare, compare_all
from hadamard_fx.report.reading import read_reports
from hadamard_fx.scheme import Exact


def changed(report, index=4):
    """The report with one product left exact, another profile, and none of its last product."""
    decisions = list(report.plan.decisions)
    left_alone = decisions[index]
    decisions[index] = replace(left_alone, scheme=Exact(), cost=left_alone.exact_cost, reason="asked for")
    settings = (("profile", ("auto", "default")), *report.plan.settings[1:])
    return replace(report, plan=replace(report.plan, decisions=tuple(decisions[:-1]), settings=settings))


def test_equal_reports_do_not_differ():
    report = report_of()
    assert not compare(report, report)
    assert not compare(report, replace(report, name="graph 3", passes=()))  # times are no difference


def test_differences():
    report = report_of()
    found = compare(report, changed(report))
    assert [(c.what, c.before, c.after) for c in found.facts] == [
        ("setting profile", "hot (options)", "auto (default)")
    ]
    first, second = found.products
    assert (first.layer, first.role) == ("blocks.1.fc", "grad_input")
    assert [change.what for change in first.changes] == ["scheme", "seconds", "error", "reason"]
    assert second.changes[0].what == "product"
    assert second.changes[0].after is None
    totals = {change.what: (change.before, change.after) for change in found.totals}
    assert totals["products"] == (12, 11)
    assert totals["rewritten"] == (8, 6)
    assert totals["seconds"][1] == pytest.approx(changed(report).seconds)


def test_equal_products_of_one_layer_are_told_apart():
    report = report_of(3)
    twice = replace(report, plan=Plan((*report.plan.decisions, *report.plan.decisions)))
    dearer = replace(report.plan.decisions[1], cost=Cost(1.0))
    other = replace(
        twice, plan=Plan((*report.plan.decisions, report.plan.decisions[0], dearer, twice.plan.decisions[5]))
    )
    (product,) = compare(twice, other).products
    assert product.role == "grad_input"


def test_graphs_of_one_side():
    report = report_of()
    same, extra = compare_all([report], [report, replace(report, name="graph 1")])
    assert not same
    assert extra.facts[0].after == "graph 1"
    assert not compare_all([], [])


@pytest.fixture
def files(tmp_path):
    """A report, one that differs from it, and what is none."""
    report = report_of()
    report.save(tmp_path / "a.json")
    changed(report).save(tmp_path / "b.json")
    (tmp_path / "list.json").write_text(json.dumps([report.as_dict(), report.as_dict()]))
    (tmp_path / "none.json").write_text("[3]")
    (tmp_path / "half.json").write_text((tmp_path / "a.json").read_text()[:1000])
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    own = report.to_json().replace('"kind": "low_rank"', '"kind": "of_my_own"')
    (tmp_path / "own.json").write_text(own)
    return tmp_path


def test_command_shows_a_report(files, capsys):
    assert main(["report", str(files / "a.json"), "--details"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "8 of 12 rewritten" in err
    assert "Every product" in err
    assert main(["report", str(files / "list.json"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


def test_command_writes_a_page(files, capsys):
    assert main(["report", str(files / "list.json"), "--html", str(files / "page.html")]) == 0
    assert (files / "page.html").read_text(encoding="utf-8").count('<section class="report"') == 2
    (files / "empty.json").write_text("[]")
    assert main(["report", str(files / "empty.json")]) == 1
    assert "holds no report" in capsys.readouterr().err


def test_command_compares(files, capsys):
    pair = [str(files / "a.json"), str(files / "b.json")]
    assert main(["report", "--diff", *pair]) == 0
    err = capsys.readouterr().err
    assert "blocks.1.fc, grad_input" in err
    assert "scheme: hadamard-16 4 bits, per token, stochastic → exact" in err
    assert "rewritten: 8 → 6" in err
    assert main(["report", "--diff", "--exit-code", *pair]) == 1
    assert main(["report", "--diff", "--exit-code", pair[0], pair[0]]) == 0
    assert "no difference" in capsys.readouterr().err
    assert main(["report", "--diff", "--json", *pair]) == 0
    (graph,) = json.loads(capsys.readouterr().out)
    assert len(graph["products"]) == 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("missing.json", "cannot be read: No such file"),
        ("", "cannot be read: Is a directory"),
        ("none.json", "no report of hadamard-fx"),
        ("half.json", "a report must be JSON"),
        ("binary.json", "no UTF-8 text"),
        ("own.json", "unknown scheme 'of_my_own'"),
    ],
)
def test_command_refuses_what_is_no_report(files, capsys, name, text):
    assert main(["report", str(files / name)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert text in err
    assert str(files / name) in err


def test_schemes_of_ones_own_are_imported(files, capsys, monkeypatch):
    monkeypatch.chdir(files)
    (files / "report_scheme.py").write_text(
        "from dataclasses import dataclass\nfrom hadamard_fx.scheme import LowRank\n"
        "@dataclass(frozen=True)\nclass OfMyOwn(LowRank):\n    kind = 'of_my_own'\n"
    )
    from hadamard_fx.scheme import Scheme

    try:
        assert main(["report", "own.json", "--import", "report_scheme"]) == 0
        assert len(read_reports("own.json")[0].plan.rewrites()) == 8
    finally:
        Scheme.kinds.pop("of_my_own", None)
    assert main(["report", "a.json", "--import", "no_such_module"]) == 1
    assert "--import no_such_module: ModuleNotFoundError" in capsys.readouterr().err


WRONG_CALLS = (
    ["a", "b"],
    ["--diff", "a"],
    ["--exit-code", "a"],
    ["--diff", "a", "b", "--html", "x.html"],
    ["a", "--html", "x.txt"],
)


@pytest.mark.parametrize("arguments", WRONG_CALLS, ids=" ".join)
def test_wrong_calls(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["report", *arguments])
    assert caught.value.code == 2
    assert "usage: hadamard-fx report" in capsys.readouterr().err
