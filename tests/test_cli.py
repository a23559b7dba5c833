"""The command line: exit codes, what goes where, and an answer to every wrong call."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from hadamard_fx.cli import main, read_options
from hadamard_fx.errors import FactoryError, OptionError
from hadamard_fx.factory import load_factory, make

MODULE = """
import torch
from torch import nn

model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))

def good():
    return model, (torch.randn(48, 16),), lambda y: y.square().mean()

def single():
    return model, torch.randn(48, 16)

def empty():
    return None

def raising():
    raise RuntimeError("no data here")

def no_model():
    return None, (torch.randn(2, 2),)

def no_inputs():
    return model, 3

def no_loss():
    return model, (torch.randn(48, 16),), 3

def too_many():
    return 1, 2, 3, 4

value = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a module of factories, and no settings from the machine."""
    (tmp_path / "cli_factories.py").write_text(MODULE)
    (tmp_path / "cli_broken.py").write_text("import no_such_package_at_all")
    (tmp_path / "cli_syntax.py").write_text("def (")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    for name in [name for name in os.environ if name.startswith("HADAMARD_FX_")]:
        monkeypatch.delenv(name)
    yield tmp_path
    for name in ("cli_factories", "cli_broken", "cli_syntax"):
        sys.modules.pop(name, None)
    torch._dynamo.reset()


def test_explain_prints_text_to_standard_error(folder, capsys):
    assert main(["explain", "cli_factories:good", "--profile", "hot"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "rank 8 of 16, 8 bits" in err
    assert "profile = hot" in err


def test_explain_prints_json_to_standard_output(folder, capsys):
    assert main(["explain", "cli_factories:good", "--json", "-o", "profile=hot", "-o", "grad_weight.rank=4"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["schema"] == "hadamard_fx.report"
    assert report["plan"]["training"]
    ranks = {d["scheme"]["rank"] for d in report["plan"]["decisions"] if d["scheme"]["kind"] == "low_rank"}
    assert ranks == {4}


def test_explain_details(folder, capsys):
    assert main(["explain", "cli_factories:good", "--details"]) == 0
    assert "Every product" in capsys.readouterr().err


def test_explain_without_a_loss(folder, capsys):
    assert main(["explain", "cli_factories:single", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("cli_factories", "not of the form MODULE:FACTORY"),
        (":make", "not of the form MODULE:FACTORY"),
        ("no_such_module:make", "there is no module 'no_such_module'"),
        ("cli_factories.sub:make", "there is no module 'cli_factories.sub'"),
        ("cli_broken:make", "importing 'cli_broken' failed: No module named 'no_such_package_at_all'"),
        ("cli_syntax:make", "importing 'cli_syntax' failed: SyntaxError"),
        ("cli_factories:god", "has no 'god'; did you mean 'good'?"),
        ("cli_factories:value", "'value' is a int and cannot be called"),
        ("cli_factories:empty", "the factory returned a NoneType; it must return (model, inputs)"),
        ("cli_factories:raising", "the factory raised RuntimeError: no data here"),
        ("cli_factories:no_model", "the factory returned None as model"),
        ("cli_factories:no_inputs", "inputs of type int, not a tuple"),
        ("cli_factories:no_loss", "the loss is a int and cannot be called"),
        ("cli_factories:too_many", "the factory returned a tuple of 4"),
    ],
)
def test_bad_factories(folder, capsys, target, text):
    assert main(["explain", target]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert text in err
    with pytest.raises(FactoryError):
        make(load_factory(target), target)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--profile", "hott"], "did you mean 'hot'?"),
        (["-o", "profile"], "expected KEY=VALUE"),
        (["-o", "=hot"], "expected KEY=VALUE"),
        (["-o", "grad_weight=exact", "-o", "grad_weight.rank=4"], "grad_weight already has the value 'exact'"),
        (["-o", "grad_weight.rank=99"], "rank must be from 1 to the order 16"),
        (["-o", 'overrides={"nothing.*": "exact"}'], "override 'nothing.*' matches no layer"),
    ],
)
def test_bad_options(folder, capsys, arguments, text):
    assert main(["explain", "cli_factories:good", *arguments]) == 2
    assert text in capsys.readouterr().err


def test_read_options():
    found = read_options(["profile=hot", "grad_weight.rank=4", "grad_weight.bits=8", 'overrides={"a.b": "exact"}'])
    assert found == {"profile": "hot", "grad_weight": {"rank": 4, "bits": 8}, "overrides": {"a.b": "exact"}}
    with pytest.raises(OptionError):
        read_options(["no-value"])


@pytest.mark.parametrize("arguments", [[], ["explain"], ["nonsense"], ["explain", "a:b", "--nonsense"]])
def test_wrong_calls(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: hadamard-fx" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("hadamard-fx ")


def test_devices(capsys):
    assert main(["devices"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "cpu" in err
    assert main(["devices", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found[0]["device"] == "cpu"
    assert found[0]["bandwidth"] > 0
    assert len(found) == 1 + torch.cuda.device_count()


def test_runs_as_a_module(tmp_path):
    environ = dict(os.environ, PYTHONPATH=os.pathsep.join(entry for entry in sys.path if entry))
    command = [sys.executable, "-m", "hadamard_fx", "explain", "nowhere:make"]
    found = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "there is no module 'nowhere'" in found.stderr
    assert "Traceback" not in found.stderr


def test_explain_writes_a_page_with_graphs(folder, capsys):
    assert main(["explain", "cli_factories:good", "--profile", "hot", "--html", "page.html"]) == 0
    assert "wrote page.html" in capsys.readouterr().err
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert "hadamard.quantized_mm" in page
    assert '<script type="application/json" class="graphs">' in page
