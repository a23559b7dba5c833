"""The command from end to end, and what the compiler makes of models that grow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import hadamard_fx
from examples.class_incremental.__main__ import arguments, main, name_of
from examples.class_incremental.contenders import ContenderError, contender, hdqt
from examples.class_incremental.experiment import Experiment, compiler
from hadamard_fx.plan import Role

ROOT = Path(__file__).resolve().parents[2]


def test_contenders() -> None:
    assert contender("exact") == {"profile": "exact"}
    assert contender("hdqt:8") == hdqt(8)
    policy = hadamard_fx.Policy.resolve(hdqt(6, bits=5, forward={"tile": 64}))
    assert str(policy.forward) == "5 bits, 6-bit sums of 64, per tensor, nearest"
    assert "5 bits, 6-bit sums of all" in str(policy.grad_input) and policy.profile.name == "hdqt"
    for name in ("hdqt", "hdqt:3", "hdqt:x", "exakt"):
        with pytest.raises(ContenderError, match="write exact, luq, or hdqt:A"):
            contender(name)


def test_other_runs_have_other_files() -> None:
    assert name_of(arguments([])) == "class_incremental"
    assert name_of(arguments(["--methods", "LwF,BiC", "--products", "hdqt:8"])) == "class_incremental-LwF_BiC-hdqt_8"
    assert name_of(arguments(["--scenario", "domain"])) == "class_incremental-domain"


def test_frozen_parts_are_multiplied_in_the_forward_only() -> None:
    """After the first task of DER a part is frozen: its products have no gradient, and the new part's have both."""
    torch.manual_seed(0)
    experiment = Experiment.of(epochs=1)
    seen = len(hadamard_fx.reports())
    experiment.run("DER", compiler(hdqt(8)), 0)
    roles: dict[str, set[Role]] = {}
    for report in hadamard_fx.reports()[seen:]:
        for decision in report.plan.decisions:
            assert decision.rewritten, decision.reason
            roles.setdefault(decision.gemm.layer, set()).add(decision.gemm.role)
    frozen = {layer: found for layer, found in roles.items() if layer.startswith("frozen")}
    newest = {layer: found for layer, found in roles.items() if layer.startswith("newest")}
    assert len(frozen) == 2 * 4 and set(map(frozenset, frozen.values())) == {frozenset({Role.FORWARD})}
    assert len(newest) == 2 and all(Role.GRAD_WEIGHT in found for found in newest.values())


def run(*arguments: str, out: Path) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "examples.class_incremental", "--quick", *arguments]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "--out", str(out)], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (written,) = out.glob("*-cpu-*-quick.json")
    found: dict[str, Any] = json.loads(written.read_text(encoding="utf-8"))
    assert found["rows"][0]["method"] in done.stdout
    return found


def test_the_quick_run(tmp_path: Path) -> None:
    found = run("--methods", "iCaRL", out=tmp_path)
    names = ["exact", "hdqt, 8-bit sums", "luq", "hdqt, 4-bit sums"]
    assert [row["products"] for row in found["rows"]] == names
    assert all(len(row["accuracies"][0]) == 5 for row in found["rows"])
    assert found["rows"][0]["average accuracy, %"] > 60
    assert (found["dataset"], found["scenario"], found["settings"]["epochs"]) == ("digits", "class", 2)


def test_the_quick_run_of_another_scenario(tmp_path: Path) -> None:
    found = run("--methods", "LwF", "--products", "exact", "--scenario", "domain", out=tmp_path)
    assert found["scenario"] == "domain" and found["rows"][0]["after the last task, %"] > 50


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--methods", "LwF,EWC"], 2, "unknown methods EWC"),
        (["--seeds", "0"], 2, "at least 1"),
        (["--products", "hdqt"], 1, "contender 'hdqt'"),
        (["--dataset", "dsads"], 1, "dsads is read from a folder: name it with --data"),
        (["--scenario", "domain", "--methods", "DER"], 1, "DER tells classes apart"),
    ],
)
def test_wrong_calls(arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if code == 2:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    else:
        assert main([*arguments, "--quick"]) == code
    assert message in capsys.readouterr().err
