"""The methods against their equations in double precision, and that each of them remembers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from examples.class_incremental.data import Split
from examples.class_incremental.exemplars import herd, herding
from examples.class_incremental.expandable import Expanded
from examples.class_incremental.experiment import Experiment
from examples.class_incremental.learner import Learner, distillation
from examples.class_incremental.methods import METHODS
from examples.class_incremental.methods.bic import BiC
from examples.class_incremental.models import three_layers
from examples.class_incremental.scenarios import ClassIncremental, DomainIncremental, ScenarioError, TaskIncremental
from examples.class_incremental.settings import Settings

TASKS = ClassIncremental(6, 2).tasks()


def eager(function: Any, dynamic: bool) -> Any:
    return function


def learner(name: str, epochs: int = 2) -> Any:
    torch.manual_seed(0)
    settings = Settings(epochs=epochs, memory=12)
    return METHODS[name](three_layers((4,), 6, 8), ClassIncremental(6, 2), eager, settings, 0)


def blobs(classes: range, count: int = 40) -> Split:
    """Points around a corner of their own for each class."""
    y = torch.arange(classes.start, classes.stop).repeat_interleave(count)
    corners = torch.randn(6, 4, generator=torch.Generator().manual_seed(5)) * 2
    noise = torch.randn(len(y), 4, generator=torch.Generator().manual_seed(classes.start))
    return Split(corners[y] + 0.3 * noise, y).shuffled()


def log_softmax(scores: np.ndarray) -> np.ndarray:
    shifted = scores - scores.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def cross_entropy(scores: np.ndarray, y: np.ndarray) -> float:
    return float(-log_softmax(scores)[np.arange(len(y)), y].mean())


def test_distillation_is_the_cross_entropy_of_softened_scores() -> None:
    new, old = torch.randn(2, 8, 4, dtype=torch.float64)
    target = np.exp(log_softmax(old.numpy() / 2))
    expected = -4 * (target * log_softmax(new.numpy() / 2)).sum(1).mean()
    assert abs(float(distillation(new, old, 2.0)) - expected) < 1e-12
    scores = old.clone().requires_grad_()
    distillation(scores, old, 2.0).backward()
    assert scores.grad is not None and scores.grad.abs().max() < 1e-12  # least where both agree


def test_herding_takes_the_nearest_mean_every_time() -> None:
    features = torch.randn(30, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    normal = features.numpy() / np.linalg.norm(features.numpy(), axis=1, keepdims=True)
    expected: list[int] = []
    for _ in range(10):
        left = [index for index in range(30) if index not in expected]
        gaps = [np.linalg.norm(normal.mean(0) - normal[[*expected, index]].mean(0)) for index in left]
        expected.append(left[int(np.argmin(gaps))])
    assert herding(features, 10) == expected
    assert len(herding(features[:3], 10)) == 3


def test_the_memory_is_shared_by_the_classes() -> None:
    kept = herd(blobs(range(6)), 6, 20, lambda x: x)
    assert torch.bincount(kept.y).tolist() == [3] * 6


def test_lwf_distils_each_group_of_old_outputs_within_itself() -> None:
    torch.manual_seed(0)
    scenario = TaskIncremental(6, 2)
    method = METHODS["LwF"](three_layers((4,), 6, 8), scenario, eager, Settings(), 0)
    made, old, y = torch.randn(5, 6).double(), torch.randn(5, 6).double(), torch.tensor([4, 5, 5, 4, 4])
    method.old = lambda x: old
    expected = cross_entropy(made.numpy()[:, 4:], y.numpy() - 4)
    for group in (slice(0, 2), slice(2, 4)):
        expected += float(distillation(made[:, group], old[:, group], 2.0))
    assert abs(float(method.loss(made, torch.empty(5, 4), y, scenario.tasks()[2])) - expected) < 1e-12


def test_icarl_asks_old_sigmoids_of_old_outputs() -> None:
    method = learner("iCaRL")
    made, old, y = torch.randn(5, 6).double(), torch.randn(5, 6).double(), torch.tensor([2, 3, 0, 1, 2])
    method.old = lambda x: old
    target = np.zeros((5, 4))
    target[np.arange(5), y] = 1
    target[:, :2] = 1 / (1 + np.exp(-old.numpy()[:, :2]))
    p = 1 / (1 + np.exp(-made.numpy()[:, :4]))
    expected = -(target * np.log(p) + (1 - target) * np.log(1 - p)).sum(1).mean()
    assert abs(float(method.loss(made, torch.empty(5, 4), y, TASKS[1])) - expected) < 1e-12


def test_bias_correction_moves_the_newest_scores_only_and_fits_them() -> None:
    method: Any = learner("BiC")
    method.newest = range(2, 4)
    scores = torch.randn(5, 6)
    found = method._scaled(scores, torch.tensor(0.5), torch.tensor(-1.0))
    assert torch.equal(found[:, 2:4], 0.5 * scores[:, 2:4] - 1)
    assert torch.equal(found[:, [0, 1, 4, 5]], scores[:, [0, 1, 4, 5]])


def test_bias_correction_distils_the_corrected_scores_of_the_old_model() -> None:
    """The correction of task 2 belongs to its outputs, also while task 3 is learned."""
    method: Any = learner("BiC")
    for task in TASKS[:2]:
        method.learn(blobs(task.classes), task)
    assert isinstance(method, BiC) and method.newest == range(2, 4) and method.correction is not None
    method.held_out(blobs(TASKS[2].classes))
    x, made, y = torch.randn(5, 4), torch.randn(5, 6), torch.tensor([4, 5, 5, 4, 0])
    alpha, beta = method.correction
    old = method.old(x).detach().double()
    old[:, 2:4] = alpha * old[:, 2:4] + beta
    expected = cross_entropy(made.double().numpy(), y.numpy()) / 3
    expected += 2 / 3 * float(distillation(made.double()[:, :4], old[:, :4], 2.0))
    assert abs(float(method.loss(made, x, y, TASKS[2])) - expected) < 1e-6 * abs(expected)


@pytest.mark.parametrize("name", ["DER", "MEMO"])
def test_the_newest_part_tells_new_classes_from_each_other_and_from_all_old_ones(name: str) -> None:
    method = learner(name)
    scores, auxiliary = torch.randn(5, 6).double(), torch.randn(5, 3).double()
    y = torch.tensor([0, 1, 2, 3, 3])
    expected = cross_entropy(scores.numpy()[:, :4], y.numpy())
    expected += cross_entropy(auxiliary.numpy(), np.array([0, 0, 1, 2, 2]))
    assert abs(float(method.loss((scores, auxiliary), torch.empty(5, 4), y, TASKS[1])) - expected) < 1e-12


@pytest.mark.parametrize("name", ["DER", "MEMO"])
def test_former_parts_stay_as_they_were(name: str) -> None:
    method = learner(name)
    for task in TASKS[:2]:
        method.learn(blobs(task.classes), task)
    method.before_task(TASKS[2])
    model = method.model
    assert isinstance(model, Expanded) and len(model.frozen) == 2
    for ours, former in zip(model.newest.parameters(), model.frozen[-1].parameters(), strict=True):
        assert torch.equal(ours, former) and ours is not former and ours.requires_grad
    before = [parameter.clone() for parameter in model.frozen.parameters()]
    shared = [parameter.clone() for parameter in model.shallow.parameters()]
    method.before_task = lambda task: None
    method.learn(blobs(TASKS[2].classes), TASKS[2])
    assert all(torch.equal(a, b) for a, b in zip(before, model.frozen.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(shared, model.shallow.parameters(), strict=True))
    assert len(shared) == {"DER": 0, "MEMO": 2}[name]
    assert model.features(torch.randn(7, 4)).shape == (7, 24)


def test_a_new_head_begins_with_the_old_scores() -> None:
    method = learner("MEMO")
    method.learn(blobs(TASKS[0].classes), TASKS[0])
    x = torch.randn(7, 4)
    features, scores = method.features(x), method.scores(x)
    method.before_task(TASKS[1])
    with torch.no_grad():
        method.model.head.weight[:, 8:] = 0
    assert torch.equal(method.features(x)[:, :8], features)
    assert torch.allclose(method.scores(x), scores, rtol=0, atol=1e-6)


def test_frozen_parts_keep_their_batch_statistics() -> None:
    parts = [torch.nn.BatchNorm1d(4) for _ in range(3)]
    model = Expanded(torch.nn.Identity(), [*parts[:2]], parts[2], 4, 6, 2).train()
    model(torch.randn(16, 4) + 1)
    assert [float(part.running_mean.norm()) > 0 for part in parts] == [False, False, True]  # type: ignore[operator]


def test_der_trains_its_classifier_again_on_as_many_examples_of_each_class() -> None:
    method = learner("DER", epochs=3)
    method.learn(blobs(TASKS[0].classes), TASKS[0])
    seen: list[int] = []
    whole = method.fit

    def fit(model: torch.nn.Module, data: Split, loss: Any, step: Any = lambda: None) -> None:
        if model is method.model.head:
            seen.extend(torch.bincount(data.y).tolist())
            assert data.x.shape == (12, 16) and not data.x.requires_grad
        whole(model, data, loss, step)

    method.fit = fit
    method.learn(blobs(TASKS[1].classes), TASKS[1])
    assert seen == [3] * 4


@pytest.mark.parametrize("name", METHODS)
def test_methods_remember(name: str) -> None:
    """Without a compiler, after three tasks: the newest alone is a third of what is asked."""
    experiment = Experiment.of(epochs=10)
    torch.manual_seed(0)
    method: Learner = METHODS[name](three_layers((1, 8, 8), 10), experiment.scenario, eager, experiment.settings, 0)
    tasks = experiment.scenario.tasks()[:3]
    for task in tasks:
        method.learn(experiment.train.of(task.classes), task)
    accuracy = method.accuracy(experiment.test, tasks)
    if name == "Fine-tuning":
        assert accuracy < 50
        return
    assert accuracy > (85 if method.uses_memory else 40)
    if method.uses_memory:
        assert method.memory is not None
        assert torch.bincount(method.memory.y).tolist() == [33] * 6


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if "domain" not in method.scenarios])
def test_methods_say_where_they_do_not_work(name: str) -> None:
    with pytest.raises(ScenarioError, match=rf"{name} tells classes apart.*class or task.*LwF"):
        METHODS[name](three_layers((4,), 2), DomainIncremental(6, 2), eager, Settings(), 0)


def test_milestones_and_cosine() -> None:
    def rates(settings: Settings) -> list[float]:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
        schedule = settings.schedule(optimizer, 2)
        found = []
        for _ in range(2 * settings.epochs):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return found

    assert rates(Settings(epochs=4, milestones=(1, 3))) == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])
    assert rates(Settings(epochs=2)) == pytest.approx([(1 + np.cos(np.pi * k / 4)) / 2 for k in range(4)])
