"""Passes that installed packages bring."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hadamard_fx.errors import (
    PassLoadError,
)
from hadamard_fx.passes import registry
from hadamard_fx.passes.registry import active

aten = torch.ops.aten


ENTRY_POINT = """
import hadamard_fx

@hadamard_fx.register_pass(after="choose")
class FromPackage(hadamard_fx.Pass):
    def decide(self, plan, joint):
        return plan
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install a package with one entry point, for the time of a test."""

    def install(value: str, source: str = ENTRY_POINT) -> None:
        (tmp_path / "some_passes.py").write_text(source)
        info = tmp_path / "some_passes-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-passes\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[hadamard_fx.passes]\nmine = {value}\n")
        monkeypatch.syspath_prepend(tmp_path)
        registry.load_entry_points.cache_clear()

    yield install
    registry.load_entry_points.cache_clear()
    sys.modules.pop("some_passes", None)


@pytest.mark.parametrize("value", ["some_passes", "some_passes:FromPackage"])
def test_entry_points_are_loaded_once(installed: Any, value: str) -> None:
    installed(value)
    assert [entry.name for entry in active({})] == ["from-package"]
    assert active({})[0].after == ("choose",)
    assert active({"from-package": False}) == ()


@pytest.mark.parametrize(
    ("value", "source", "message"),
    [
        ("no_such_module", "", "entry point 'mine' = 'no_such_module' of some-passes does not load: ModuleNotFound"),
        ("some_passes:value", "value = 3", "of some-passes: a pass derives from hadamard_fx.Pass; 3 does not"),
    ],
)
def test_bad_entry_points_are_named(installed: Any, value: str, source: str, message: str) -> None:
    installed(value, source)
    with pytest.raises(PassLoadError, match=message):
        active({})
