"""The tuner: measures once, remembers, survives damaged files and configurations that do not compile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hadamard_fx.errors import KernelError
from hadamard_fx.kernels import autotune

CONFIGS = [{"tile": 1}, {"tile": 2}, {"tile": 3}]
SECONDS = {1: 3.0, 2: 1.0, 3: 2.0}


class Runner:
    """Counts launches; ``measure`` answers from a table instead of a clock."""

    def __init__(self, broken: tuple[int, ...] = ()) -> None:
        self.broken, self.launched, self.last = broken, [], 0

    def run(self, config: autotune.Config) -> None:
        if config["tile"] in self.broken:
            raise RuntimeError(f"out of registers with tile {config['tile']}")
        self.launched.append(config["tile"])
        self.last = config["tile"]

    def measure(self, call: object) -> float:
        return SECONDS[self.last]

    def best(self, key: dict[str, object] | None = None) -> autotune.Config:
        return autotune.best("gemm", key or {"M": 64}, CONFIGS, self.run, measure=self.measure)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HADAMARD_FX_CACHE_DIR", str(tmp_path / "cache"))
    autotune.forget()
    return tmp_path / "cache"


def test_fastest_wins_and_is_remembered() -> None:
    runner = Runner()
    assert runner.best() == {"tile": 2}
    assert runner.best() == {"tile": 2}
    assert runner.launched == [1, 2, 3]
    assert runner.best({"M": 128}) == {"tile": 2} and len(runner.launched) == 6


def test_remembered_on_disk_for_the_next_process(folder: Path) -> None:
    Runner().best()
    Runner().best({"M": 128})
    autotune.forget()
    runner = Runner()
    assert runner.best() == {"tile": 2} and runner.best({"M": 128}) == {"tile": 2} and not runner.launched
    (file,) = folder.glob("*.json")
    assert len(json.loads(file.read_text())["entries"]) == 2
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"entries": 3}', '{"entries": {"gemm": [1]}}'])
def test_damaged_file_is_rewritten(folder: Path, damage: str) -> None:
    Runner().best()
    (file,) = folder.glob("*.json")
    file.write_text(damage)
    autotune.forget()
    runner = Runner()
    assert runner.best() == {"tile": 2} and runner.launched
    assert json.loads(file.read_text())["entries"]


def test_another_list_of_candidates_is_another_question() -> None:
    runner = Runner()
    assert runner.best() == {"tile": 2}
    fewer = [CONFIGS[0], CONFIGS[2]]
    assert autotune.best("gemm", {"M": 64}, fewer, runner.run, measure=runner.measure) is fewer[1]
    assert runner.best() is CONFIGS[1] and len(runner.launched) == 5


def test_an_answer_that_is_no_candidate_any_more_is_ignored(folder: Path) -> None:
    Runner().best()
    (file,) = folder.glob("*.json")
    file.write_text(file.read_text().replace('"tile": 2', '"tile": 9'))
    autotune.forget()
    assert Runner().best() == {"tile": 2}


def test_a_configuration_that_fails_is_skipped() -> None:
    assert Runner(broken=(2,)).best() == {"tile": 3}


def test_all_failing_names_kernel_shape_and_cause() -> None:
    with pytest.raises(KernelError, match=r"'gemm' failed for M=64: out of registers with tile 3"):
        Runner(broken=(1, 2, 3)).best()


def test_one_candidate_is_not_measured() -> None:
    assert autotune.best("gemm", {}, CONFIGS[:1], Runner().run) == {"tile": 1}


def test_nothing_is_measured_during_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner()
    monkeypatch.setattr(autotune, "capturing", lambda: True)
    assert runner.best() == {"tile": 1} and not runner.launched
    monkeypatch.setattr(autotune, "capturing", lambda: False)
    assert runner.best() == {"tile": 2}


def test_unwritable_folder_is_no_error(folder: Path) -> None:
    folder.write_text("a file where the folder should be")
    assert Runner().best() == {"tile": 2}


def test_seconds_measures() -> None:
    assert 0 < autotune.seconds(lambda: torch.ones(8).sum(), repeats=3) < 1


def test_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HADAMARD_FX_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert autotune.directory() == tmp_path / "hadamard_fx" / "autotune"
    assert set(autotune.environment()) == {"device", "torch", "triton", "sources"}
