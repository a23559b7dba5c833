"""The file of a calibration: it comes back, it is never half written, and foreign ones are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_net import batches, square
from torch import nn

import hadamard_fx
from hadamard_fx import Calibration
from hadamard_fx.backend import _digest
from hadamard_fx.cost_model.device_profile import profile_for
from hadamard_fx.errors import CalibrationError
from hadamard_fx.passes.manager import Pipeline


def test_the_file_comes_back(calibration, tmp_path):
    path = calibration.save(tmp_path / "deep" / "calibration.json")
    again = Calibration.load(path)
    assert again == calibration and again.digest() == calibration.digest() and hash(again) == hash(calibration)
    assert [entry.name for entry in path.parent.iterdir()] == ["calibration.json"]


def test_the_digest_is_the_same_in_another_process(calibration, tmp_path):

    path = calibration.save(tmp_path / "calibration.json")
    script = "import sys, hadamard_fx; print(hadamard_fx.Calibration.load(sys.argv[1]).digest())"
    run = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == calibration.digest()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the administrator may write anywhere")
def test_an_unwritable_folder_is_told(calibration, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CalibrationError, match="save it elsewhere"):
        calibration.save(tmp_path / "calibration.json")


def test_a_folder_that_is_a_file_is_told_and_the_old_file_stays(calibration, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CalibrationError, match="save it elsewhere"):
        calibration.save(tmp_path / "file" / "calibration.json")
    path = calibration.save(tmp_path / "calibration.json")
    before = path.read_bytes()

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(CalibrationError, match="No space left"):
        calibration.save(path)
    assert path.read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["calibration.json", "file"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "truncated"),
        (lambda text: "", "truncated"),
        (lambda text: "[1, 2]", "is no calibration: schema 'list'"),
        (
            lambda text: '{"schema": "hadamard_fx.report", "version": 1}',
            "is no calibration: schema 'hadamard_fx.report'",
        ),
        (lambda text: text.replace('"version": 1', '"version": 99', 1), "schema version 99"),
        (lambda text: text.replace('"coherence"', '"cohesion"', 1), "is damaged: KeyError"),
        (lambda text: text.replace('"role": "forward"', '"role": "sideways"', 1), "is damaged"),
        (lambda text: text.replace('"kind": "hadamard"', '"kind": "mine"', 1), "import the module that declares"),
    ],
    ids=["half", "empty", "list", "report", "version", "field", "role", "scheme"],
)
def test_a_file_that_is_none_of_ours_is_refused(calibration, tmp_path, change, message):
    path = tmp_path / "calibration.json"
    path.write_text(change(json.dumps(calibration.to_json())))
    with pytest.raises(CalibrationError, match=message):
        Calibration.load(path)
    with pytest.raises(CalibrationError, match="calibration"):
        hadamard_fx.explain(nn.Linear(4, 4), options={"calibration": str(path)})(torch.ones(2, 4))


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(CalibrationError, match=r"cannot read the calibration .*No such file"):
        hadamard_fx.explain(nn.Linear(4, 4), options={"calibration": tmp_path / "none.json"})(torch.ones(2, 4))


def test_the_hash_enters_the_compile_key(net, calibration, tmp_path):

    other = hadamard_fx.calibrate(net, [3 * batch for batch in batches()], square)
    path = calibration.save(tmp_path / "calibration.json")
    keys = []
    for content in (calibration, other, calibration):
        content.save(path)
        keys.append(_digest(Pipeline(hadamard_fx.Policy.resolve({"calibration": path}), profile_for("cpu"), ())))
    assert keys[0] == keys[2] != keys[1]


def test_it_is_set_by_a_file_or_the_environment_too(calibration, tmp_path):
    path = calibration.save(tmp_path / "calibration.json")
    policy = hadamard_fx.Policy.resolve(None, environ={"HADAMARD_FX_CALIBRATION": str(path)}, directory=tmp_path)
    assert policy.calibration == str(path)
    (tmp_path / "hadamard.toml").write_text(f'calibration = "{path}"\n')
    policy = hadamard_fx.Policy.resolve(None, environ={}, directory=tmp_path)
    assert policy.calibration == str(path)
    assert Path(dict(policy.settings)["calibration"][0]) == path
