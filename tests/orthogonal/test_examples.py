"""The recurrent examples run in seconds with ``--quick``, write what they say, and pose the task of the paper."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from examples import character_model, copy_task, sequential_digits  # noqa: E402
from examples.fast_cells import FastGRNN, FastRNN  # noqa: E402
from examples.recurrent_contenders import Contender, parse, recurrent_bytes  # noqa: E402
from examples.recurrent_training import fit, record  # noqa: E402
from examples.text_data import Corpus  # noqa: E402


@pytest.mark.parametrize("example", [sequential_digits, copy_task, character_model], ids=lambda module: module.__name__)
def test_quick_run(example, tmp_path, capsys):
    threads = torch.get_num_threads()
    contenders = "lstm,gru,bjorck,bjorck:3,projunn,projunn:4,fastrnn,fastgrnn,hadamard,hadamard:4"
    assert example.main(["--quick", "--per-channel", "--contenders", contenders, "--out", str(tmp_path)]) == 0
    assert torch.get_num_threads() == threads
    name = example.__name__.rpartition(".")[2]
    (path,) = tmp_path.glob(f"{name}-cpu-*-quick.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["sizes"]["per_channel"] is True
    assert data["quick"] is True and data["command"].startswith(f"python examples/{name}.py --quick")
    assert [row["contender"] for row in data["rows"]] == [contender.name for contender in parse(contenders)]
    printed = capsys.readouterr().out
    assert all(row["contender"] in printed for row in data["rows"])
    quantised = data["rows"][3]
    assert quantised["gap"] > 0.05 > data["rows"][2]["gap"]
    if example is sequential_digits:
        assert 0 <= quantised["accuracy, 12-bit states"] <= 100 and "accuracy, 12-bit states" not in data["rows"][2]


@pytest.mark.parametrize("example", [sequential_digits, copy_task, character_model], ids=lambda module: module.__name__)
@pytest.mark.parametrize(
    "arguments",
    [["--contenders", "rnn"], ["--contenders", "lstm,bjorck:x"], ["--contenders", "fastrnn:4"], ["--hidden", "0"]],
    ids=str,
)
def test_usage(example, arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        example.main(arguments)
    assert caught.value.code == 2
    assert "contender" in capsys.readouterr().err or "--hidden" in arguments


@pytest.mark.parametrize(
    ("example", "option"), [(sequential_digits, "--mnist"), (character_model, "--penn")], ids=lambda value: str(value)
)
def test_a_data_set_that_is_not_there(example, option, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        example.main([option, str(tmp_path / "absent"), "--quick", "--out", str(tmp_path)])
    assert caught.value.code == 2 and "no such folder" in capsys.readouterr().err


def test_frequencies_are_an_entropy():
    """Two symbols, one of them three times in four: close to 0.811 bits where the test text is like the other."""
    text = torch.tensor([0, 0, 0, 1] * 1000)
    corpus = Corpus(("a", "b"), text, text, text, "")
    assert character_model.frequencies(corpus) == pytest.approx(0.75 * math.log2(4 / 3) + 0.25 * 2, abs=1e-3)


def test_character_windows_continue_each_other():
    sizes = character_model.Sizes(window=7, batch=3, steps=2)
    for x, target in character_model.batches(torch.arange(50) % 9, 9, sizes, 0):
        assert x.shape == (3, 7, 9) and torch.equal(x.argmax(2)[:, 1:], target[:, :-1])
        assert torch.equal((x.argmax(2) + 1) % 9, target)


def test_runs_of_other_sizes_have_other_files(tmp_path):
    usual, other = copy_task.Sizes(), copy_task.Sizes(delay=3, per_channel=True)
    names = [record("copy_task", sizes, [], [], False, tmp_path).name for sizes in (usual, other)]
    assert names[0].startswith("copy_task-cpu-")
    assert names[1].startswith("copy_task-delay-3-per_channel-True-cpu-")


def test_copy_problem():
    x, target = copy_task.problems(3, 4, 2, torch.Generator().manual_seed(0))
    codes = x.argmax(2)
    assert x.shape == (3, 8, 10) and torch.equal(x.sum(2), torch.ones(3, 8))
    assert codes[:, :2].max() < 8
    assert codes[:, 2:].tolist() == 3 * [[8, 8, 8, 9, 8, 8]]
    assert target[:, :6].tolist() == 3 * [6 * [8]]
    assert torch.equal(target[:, 6:], codes[:, :2])


def test_naive_baseline_is_what_knowing_nothing_costs():
    """A net that says blank surely, and each symbol with the same probability at the end."""
    delay, symbols = 20, 5
    _, target = copy_task.problems(16, delay, symbols, torch.Generator().manual_seed(0))
    output = torch.zeros(16, delay + 2 * symbols, 9)
    output[:, :-symbols, 8] = 100
    output[:, -symbols:, 8] = -100
    assert copy_task.entropy(output, target).item() == pytest.approx(copy_task.naive_baseline(delay, symbols))
    assert copy_task.naive_baseline(1000, 10) == pytest.approx(10 * math.log(8) / 1020)


def test_digits_are_split_without_overlap():
    x, y, test_x, test_y = sequential_digits.digits()
    assert x.shape == (1437, 64, 1) and test_x.shape == (360, 64, 1) and len(y) == 1437 and len(test_y) == 360
    assert torch.equal(x * 16, (x * 16).round()) and x.min() == 0 and x.max() == 1


def test_bytes():
    assert recurrent_bytes(Contender("bjorck"), 1, 64) == 4 * 64 * 65
    assert recurrent_bytes(Contender("projunn", 4), 1, 64) == 64 * 65 / 2
    assert recurrent_bytes(Contender("hadamard", 4), 1, 64) == (64 + 4 * 64) / 8
    lstm = Contender("lstm").model(1, 64, 10).cell
    assert recurrent_bytes(Contender("lstm"), 1, 64) == 4 * sum(parameter.numel() for parameter in lstm.parameters())


@pytest.mark.parametrize("cell", [FastRNN, FastGRNN])
def test_fast_cells_follow_their_equations(cell):
    torch.manual_seed(0)
    net, x = cell(3, 5).double(), torch.randn(2, 6, 3, dtype=torch.float64)
    p = {name: parameter.detach() for name, parameter in net.named_parameters()}
    h, found = torch.zeros(2, 5, dtype=torch.float64), []
    for t in range(6):
        s = x[:, t] @ p["input.weight"].T + h @ p["recurrent.weight"].T
        c = torch.tanh(s + p["input.bias"])
        if cell is FastRNN:
            h = c / (1 + math.exp(3.0)) + h / (1 + math.exp(-3.0))
        else:
            z = 1 / (1 + torch.exp(-(s + p["gate_bias"])))
            h = ((1 - z) / (1 + math.exp(-1.0)) + 1 / (1 + math.exp(4.0))) * c + z * h
        found.append(h)
    torch.testing.assert_close(net(x), torch.stack(found, 1))


def test_rate_rises_and_falls():
    model = torch.nn.Linear(1, 1)
    stepper = torch.optim.SGD(model.parameters(), lr=1.0)
    rates = []
    data = [(torch.ones(1, 1), torch.zeros(1, 1))] * 100
    fit(
        model, [stepper], data, 100, torch.nn.functional.mse_loss, lambda _: rates.append(stepper.param_groups[0]["lr"])
    )
    assert rates[0] == pytest.approx(0.4)  # seen after the schedule's step
    assert max(rates) > 0.95 and rates[-1] < 0.01 and rates.index(max(rates)) < 10
