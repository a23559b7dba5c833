"""Torch's structured trace holds the report, whether the passes ran or the graph came from the cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from hadamard_fx.report import Report

SCRIPT = """
import torch
from torch import nn
torch.manual_seed(0)
model = torch.compile(nn.Linear(64, 64), backend="hadamard", options={"profile": "hot"})
model(torch.randn(64, 64)).square().mean().backward()
"""


def artifacts(folder, name):
    """The payloads of that name: a line of metadata, then lines that begin with a tab."""
    (log,) = folder.glob("*.log")
    lines = log.read_text(encoding="utf-8").splitlines()
    for place, line in enumerate(lines):
        found = line.find("{")
        if not line.startswith("\t") and found >= 0 and f'"name": "{name}"' in line:
            metadata = json.loads(line[found:])
            assert metadata["artifact"] == {"name": name, "encoding": "json"}
            payload = []
            for below in lines[place + 1 :]:
                if not below.startswith("\t"):
                    break
                payload.append(below)
            yield "\n".join(payload)


@pytest.mark.skipif("hadamard" not in torch._dynamo.list_backends(), reason="needs the installed package")
def test_trace_holds_the_report(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    for run in ("first", "second"):
        environ = {
            **os.environ,
            "TORCH_TRACE": str(tmp_path / run),
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        }
        subprocess.run([sys.executable, "train.py"], cwd=tmp_path, env=environ, check=True, capture_output=True)
        (payload,) = artifacts(tmp_path / run, "hadamard_fx_report")
        report = Report.from_json(payload)
        assert len(report.plan.rewrites()) == 1
        assert report.from_cache == (run == "second")
