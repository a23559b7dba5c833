"""``HADAMARD_FX_DUMP`` and ``TORCH_LOGS``."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from own import Keep, compiled

from hadamard_fx.passes.registry import register_pass

aten = torch.ops.aten


def test_dump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HADAMARD_FX_DUMP", str(tmp_path / "dumps"))
    register_pass(Keep)
    compiled()
    (folder,) = (tmp_path / "dumps").iterdir()
    assert folder.name == "graph-0"
    assert sorted(path.name for path in folder.iterdir()) == [
        "00-start.joint.txt",
        "01-find.joint.txt",
        "02-choose.joint.diff",
        "02-choose.joint.txt",
        "03-keep.joint.diff",
        "03-keep.joint.txt",
        "04-rewrite.joint.diff",
        "04-rewrite.joint.txt",
        "05-start.forward.txt",
        "06-producers.forward.txt",
        "07-fuse.forward.txt",
        "08-start.backward.txt",
        "09-producers.backward.txt",
        "10-fuse.backward.txt",
    ]
    start = (folder / "00-start.joint.txt").read_text()
    assert "addmm: f32[50, 40] = aten.addmm(" in start and "# first\n" in start
    changed = [line for line in (folder / "03-keep.joint.diff").read_text().splitlines() if line[:1] in "+-"][2:]
    assert len(changed) == 2 and changed[1].endswith("exact (pass 'keep': kept)")
    assert "hadamard.compress_tokens" in (folder / "04-rewrite.joint.diff").read_text()
    compiled()
    assert (tmp_path / "dumps" / "graph-1").is_dir()


def test_a_dump_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HADAMARD_FX_DUMP", str(tmp_path / "file"))
    with caplog.at_level(logging.WARNING, logger="hadamard_fx.passes"):
        compiled()
    assert "cannot be written" in caplog.text


def test_every_pass_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    register_pass(Keep)
    with caplog.at_level(logging.DEBUG, logger="hadamard_fx.passes"):
        compiled()
    assert "keep on the joint graph: " in caplog.text and "ms, 1 decision" in caplog.text
    assert 'find on the joint graph found {"products": 5}' in caplog.text


def test_torch_logs() -> None:
    script = "import torch, hadamard_fx; print(__import__('logging').getLogger('hadamard_fx.passes').level)"
    environ = {**os.environ, "TORCH_LOGS": "+hadamard_fx.passes"}
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(logging.DEBUG)]
