"""The class-incremental example: its parts against their equations, and one short run from end to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from examples.class_incremental.data import Split, digits, tasks  # noqa: E402
from examples.class_incremental.learner import Settings, distillation, herding  # noqa: E402
from examples.class_incremental.methods import METHODS, BiC  # noqa: E402
from examples.class_incremental.models import ThreeLayers  # noqa: E402


def test_tasks_share_nothing_and_miss_nothing() -> None:
    train, test = digits()
    assert [list(classes) for classes in tasks(10, 2)] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert sum(len(train.of(classes).y) for classes in tasks(10, 2)) == len(train.y) == 1437
    assert len(test.y) == 360 and train.x.min() == 0 and train.x.max() == 1


def test_distillation_is_least_at_the_old_scores() -> None:
    old = torch.randn(8, 4)
    scores = old.clone().requires_grad_()
    distillation(scores, old, 2.0).backward()
    assert scores.grad is not None and scores.grad.abs().max() < 1e-6
    assert distillation(old + torch.randn(8, 4), old, 2.0) > distillation(old, old, 2.0)


def test_herding_follows_the_mean() -> None:
    features = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)) + 1
    chosen = herding(features, 10)
    normal = torch.nn.functional.normalize(features, dim=1)
    assert len(set(chosen)) == 10
    gap = (normal[chosen].mean(0) - normal.mean(0)).norm()
    assert gap < 0.3 * (normal[:10].mean(0) - normal.mean(0)).norm()
    assert len(herding(features[:3], 10)) == 3


@pytest.mark.parametrize("method", METHODS)
def test_methods_remember(method: str) -> None:
    """Without a compiler: better than the newest task alone, which is 100/3 % after three tasks; a bounded memory."""
    torch.manual_seed(0)
    train, test = digits()
    settings = Settings(epochs=10, memory=60)
    learner = METHODS[method](ThreeLayers(64, 64, 10), lambda function, dynamic: function, settings, 0)
    for classes in tasks(6, 2):
        learner.learn(train.of(classes), classes)
    seen = test.of(range(6))
    accuracy = 100 * float((learner.predict(seen.x) == seen.y).float().mean())
    assert accuracy > (70 if learner.uses_memory else 40)
    if learner.uses_memory:
        assert learner.memory is not None
        assert torch.bincount(learner.memory.y).tolist() == [10] * 6


def test_bias_correction_moves_the_newest_scores_only() -> None:
    learner = BiC(ThreeLayers(4, 8, 6), lambda function, dynamic: function, Settings(), 0)
    learner.newest = range(2, 4)
    scores = torch.randn(5, 6)
    found = learner._scaled(scores, torch.tensor(0.5), torch.tensor(-1.0))
    assert torch.equal(found[:, 2:4], 0.5 * scores[:, 2:4] - 1)
    assert torch.equal(found[:, [0, 1, 4, 5]], scores[:, [0, 1, 4, 5]])


def test_a_split_by_class() -> None:
    split = Split(torch.arange(4.0)[:, None], torch.tensor([0, 2, 1, 2]))
    assert split.of(range(1, 3)).x.flatten().tolist() == [1.0, 2.0, 3.0]


def test_the_quick_run(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "examples.class_incremental", "--quick", "--methods", "iCaRL"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob("class_incremental-cpu-*-quick.json")
    rows = json.loads(written.read_text(encoding="utf-8"))["rows"]
    assert [row["products"] for row in rows] == ["exact", "hdqt, 8-bit sums", "hdqt, 4-bit sums"]
    assert all(len(row["accuracies"][0]) == 5 for row in rows)
    assert rows[0]["average accuracy, %"] > 60 and "iCaRL" in done.stdout
