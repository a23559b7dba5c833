"""What the three scenarios ask (van de Ven & Tolias 2019), counted by hand on few classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from examples.class_incremental.data import Split, chronological, normalized
from examples.class_incremental.experiment import Experiment
from examples.class_incremental.methods.rehearsal import Rehearsal
from examples.class_incremental.models import three_layers
from examples.class_incremental.scenarios import (
    SCENARIOS,
    ClassIncremental,
    DomainIncremental,
    ScenarioError,
    TaskIncremental,
)
from examples.class_incremental.settings import Settings


def test_tasks_share_nothing_and_miss_nothing() -> None:
    digits = Experiment.of()
    ranges = digits.scenario.ranges()
    assert [list(classes) for classes in ranges] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert sum(len(digits.train.of(classes)) for classes in ranges) == len(digits.train) == 1437
    assert len(digits.test) == 360 and digits.train.x.min() == 0 and digits.train.x.max() == 1


def test_what_is_left_over_joins_the_last_task() -> None:
    assert ClassIncremental(19, 2).ranges()[-1] == range(16, 19)
    assert len(ClassIncremental(19, 2).ranges()) == 9


@pytest.mark.parametrize(
    ("kind", "labels", "outputs", "old", "questions"),
    [
        (ClassIncremental, [0, 1, 2, 3, 4, 5], 6, (range(4),), [(range(6), range(6))]),
        (
            TaskIncremental,
            [0, 1, 2, 3, 4, 5],
            6,
            (range(2), range(2, 4)),
            [(range(2), range(2)), (range(2, 4), range(2, 4)), (range(4, 6), range(4, 6))],
        ),
        (DomainIncremental, [0, 1, 0, 1, 0, 1], 2, (range(2),), [(range(6), range(2))]),
    ],
)
def test_labels_outputs_and_questions(kind: Any, labels: Any, outputs: int, old: Any, questions: Any) -> None:
    scenario = kind(6, 2)
    tasks = scenario.tasks()
    assert scenario.label(torch.arange(6)).tolist() == labels
    assert scenario.outputs == outputs
    assert (tasks[0].old, tasks[2].old) == ((), old)
    assert tasks[2].outputs == (range(2) if kind is DomainIncremental else range(4, 6))
    assert scenario.questions(tasks) == questions


def test_the_same_scores_are_right_in_one_scenario_and_wrong_in_another() -> None:
    """Always the output that is greatest: 3. Class: 3 alone is right; task: 1 and 3 are; domain: 1, 3 and 5 are."""
    test = Split(torch.zeros(6, 4), torch.arange(6))
    scores = {"class": [0, 1, 2, 9, 0, 0], "task": [0, 1, 2, 9, 1, 0], "domain": [0, 1]}
    right = {"class": 1, "task": 3, "domain": 3}
    for name, kind in SCENARIOS.items():
        scenario = kind(6, 2)
        method = Rehearsal(three_layers((4,), scenario.outputs), scenario, lambda f, dynamic: f, Settings(), 0)
        made = torch.tensor([scores[name]]).float()
        method.scores = lambda x, made=made: made.expand(len(x), -1)  # type: ignore[misc]
        assert method.accuracy(test, scenario.tasks()) == pytest.approx(100 * right[name] / 6)


def test_scenarios_that_do_not_fit() -> None:
    with pytest.raises(ScenarioError, match="2 to 10 classes"):
        ClassIncremental(10, 1)
    with pytest.raises(ScenarioError, match="19 is no multiple of 2; choose a divisor"):
        DomainIncremental(19, 2)


def test_a_split_by_class() -> None:
    split = Split(torch.arange(4.0)[:, None], torch.tensor([0, 2, 1, 2]))
    assert split.of(range(1, 3)).x.flatten().tolist() == [1.0, 2.0, 3.0]


def test_the_end_of_every_recording_is_for_the_test() -> None:
    recordings = [(torch.arange(10.0)[:, None], 1), (torch.arange(4.0)[:, None], 0)]
    train, test = chronological(recordings)
    assert test.x.flatten().tolist() == [8, 9] and test.y.tolist() == [1, 1]
    assert train.x.flatten().tolist() == [*range(8), *range(4)] and train.y.tolist() == [1] * 8 + [0] * 4


def test_normalised_by_the_training_examples_alone() -> None:
    x = torch.randn(50, 3) * torch.tensor([2.0, 5.0, 0.0]) + 7
    train, test = normalized(Split(x, torch.zeros(50).long()), Split(x + 1, torch.zeros(50).long()))
    assert train.x[:, :2].mean(0).abs().max() < 1e-5 and (train.x[:, :2].std(0) - 1).abs().max() < 1e-5
    assert torch.allclose(test.x - train.x, 1 / torch.tensor([x[:, 0].std(), x[:, 1].std(), 1.0]), atol=1e-4)
    assert train.x[:, 2].abs().max() == 0
