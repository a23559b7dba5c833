"""A model written elsewhere is cut into shallow part, deep part and head, and computes what it did before."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.class_incremental.experiment import Experiment
from examples.class_incremental.models import MODELS, ModelError, cut, three_layers


class Residual(nn.Module):
    """A small convolutional net in the style of others: functions between modules, and a sum around one."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
        self.layer2 = nn.Conv2d(4, 6, 3, padding=1, stride=2)
        self.fc = nn.Linear(6, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = self.layer1(x) + x
        x = F.relu(self.layer2(x))
        made: Tensor = self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return made


def test_a_cut_model_computes_the_same_with_the_same_parameters() -> None:
    model, x = Residual(10).eval(), torch.randn(3, 1, 8, 8)
    expected = model(x)
    classifier = cut(model, shallow="norm", head="fc")
    assert torch.equal(classifier(x), expected)
    assert torch.equal(classifier.head(classifier.body.deep(classifier.body.shallow(x))), expected)
    assert classifier.features(x).shape == (3, classifier.body.width) == (3, 6)
    assert {id(p) for p in classifier.parameters()} == {id(p) for p in model.parameters()}
    shallow = {id(p) for p in classifier.body.shallow.parameters()}
    assert shallow == {id(p) for p in (*model.stem.parameters(), *model.norm.parameters())}


def test_a_cut_model_switches_between_training_and_use() -> None:
    classifier = cut(Residual(10), shallow="norm", head="fc")
    x = torch.randn(8, 1, 8, 8) + 3
    before = classifier.train()(x)
    assert not torch.allclose(before, classifier.eval()(x))


@pytest.mark.parametrize(
    ("shallow", "head", "message"),
    [
        ("layer1", "fc", "used behind it"),
        ("layer9", "fc", "'layer9' runs 0 times.*stem, norm, layer1, layer2, fc"),
        ("norm", "layer2", "'layer2' is a Conv2d; name the nn.Linear"),
    ],
)
def test_cuts_that_do_not_work(shallow: str, head: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        cut(Residual(10), shallow, head)


def test_a_model_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """MEMO needs the cut, DER copies the whole body; batch statistics and convolutions go through both."""
    monkeypatch.setitem(MODELS, "residual", lambda shape, outputs: cut(Residual(outputs), shallow="norm", head="fc"))
    experiment = Experiment.of(model="residual", epochs=15)
    for method in ("DER", "MEMO"):
        accuracies = experiment.run(method, lambda function, dynamic: function, 0)
        assert len(accuracies) == 5 and accuracies[0] > 90 and accuracies[-1] > 50


def test_unknown_models_are_named() -> None:
    with pytest.raises(ModelError, match="no model 'resnet99'; known: three_layers"):
        Experiment.of(model="resnet99")


def test_three_layers_flatten() -> None:
    classifier = three_layers((1, 8, 8), 10, width=16)
    x = torch.randn(5, 1, 8, 8, dtype=torch.float64)
    first, second = classifier.double().body.shallow[1], classifier.body.deep[0]  # type: ignore[index]
    hidden = torch.relu(x.flatten(1) @ first.weight.T + first.bias)
    hidden = torch.relu(hidden @ second.weight.T + second.bias)
    assert torch.allclose(classifier(x), hidden @ classifier.head.weight.T + classifier.head.bias, atol=1e-12)
