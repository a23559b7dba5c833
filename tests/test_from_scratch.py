"""Trainings from scratch and by adapters: data, judgement, whole quick runs, and the page that shows them."""

from __future__ import annotations

import itertools
import json
import math
import statistics
import sys
import xml.etree.ElementTree as ElementTree
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import accuracy_page  # noqa: E402  scripts, no package: found on the path only
import char_gpt_loss  # noqa: E402
import digits_accuracy  # noqa: E402
import lora  # noqa: E402
from _contenders import Unavailable  # noqa: E402
from _curves import curves  # noqa: E402
from _from_scratch import Outcome, judged, settings  # noqa: E402

from examples import char_gpt  # noqa: E402
from examples.char_gpt import SIZES, CharGPT, batches  # noqa: E402
from examples.library_source import VOCABULARY, characters, library_source  # noqa: E402
from examples.side_by_side import Contender, Task, train  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"
EXPERIMENTS = {
    "char_gpt_loss": (char_gpt_loss, ["exact", "luq"], ["low_pass", "no-profile"]),
    "digits_accuracy": (digits_accuracy, ["exact", "low_pass"], ["no-profile"]),
}
"""Name -> (script, contenders that run, others)."""


def test_characters_are_ascii_codes():
    assert characters("a\n~\x7fé→").tolist() == [97, 10, 126, 127, 127, 127]
    assert characters("").tolist() == []


def test_library_source_is_split_and_always_the_same():
    train_text, held_out = library_source(None)
    assert len(train_text) > 10**6 and len(held_out) > 10**5
    assert int(train_text.max()) < VOCABULARY
    library_source.cache_clear()
    assert all(torch.equal(a, b) for a, b in zip(library_source(None), (train_text, held_out), strict=True))
    assert len(library_source(1000)[0]) == 1000


def test_targets_are_the_next_characters():
    text = torch.arange(1000) % 100
    sizes = SIZES["cpu"]
    pairs = list(itertools.islice(batches(3, text, sizes), 2))
    for inputs, targets in pairs:
        assert inputs.shape == targets.shape == (sizes.batch, sizes.context)
        assert torch.equal((inputs + 1) % 100, targets)
    assert not torch.equal(pairs[0][0], pairs[1][0])
    assert torch.equal(pairs[0][0], next(batches(3, text, sizes))[0])


def test_the_character_gpt_sees_nothing_behind_a_character():
    torch.manual_seed(0)
    model, x = CharGPT(context=16, dim=32, depth=2, heads=2), torch.randint(VOCABULARY, (1, 16))
    other = x.clone()
    other[0, 9] = (x[0, 9] + 1) % VOCABULARY
    changed = (model(x) != model(other)).any(-1)[0]
    assert changed.tolist() == [False] * 9 + [True] * 7


def small_task(steps: int) -> Task:
    """Four clusters, told apart by a linear layer."""

    def endless(seed: int):
        generator = torch.Generator().manual_seed(seed)
        while True:
            labels = torch.randint(4, (16,), generator=generator)
            yield torch.nn.functional.one_hot(labels, 8).float(), labels

    return Task(lambda: torch.nn.Linear(8, 4), endless, lambda model: float(model.weight.sum()), steps, 0.1, False, 2)


def test_seeds_do_not_depend_on_who_else_takes_part():
    from rich.console import Console

    def contender(name: str) -> Contender:
        def compiled(model: torch.nn.Module):
            noisy = torch.compile(lambda x: model(x) + 0.1 * torch.rand(4), backend="aot_eager")
            return noisy

        return Contender(name, compiled)

    console = Console(stderr=True, quiet=True)
    alone, one, other = contender("alone"), contender("one"), contender("other")
    train([alone], small_task(5), 2, "cpu", console)
    train([one, other], small_task(5), 2, "cpu", console)
    assert alone.losses == one.losses == other.losses
    assert [[step for step, _ in curve] for curve in alone.curves] == [[2, 4, 5]] * 2
    assert alone.curves[0] != alone.curves[1], "seeds differ"
    assert all(losses[-1] < losses[0] for losses in alone.losses)


def outcome(name: str, *scores: float) -> Outcome:
    return Outcome(name, [10], [[score] for score in scores], [0.5] * len(scores), 0.1, 2**20)


def test_judgement():
    base = outcome("exact", 1.0, 1.1, 1.2)
    rows = judged([base, outcome("same", 1.05, 1.15, 1.25), outcome("high", 2.0, 2.1, 2.2)], higher=False)
    deviation = statistics.stdev([1.0, 1.1, 1.2])
    assert rows[1]["difference"] == pytest.approx(0.05)
    assert rows[1]["standard error"] == pytest.approx(math.sqrt(2 * deviation**2 / 3))
    assert [row["verdict"] for row in rows] == ["", "within noise", "worse"]
    assert judged([base, outcome("high", 2.0, 2.1, 2.2)], higher=True)[1]["verdict"] == "better"
    assert judged([base, outcome("nan", math.nan, 1.0, 1.0)], higher=True)[1]["verdict"] == "diverged"
    assert judged([outcome("exact", 1.0), outcome("one", 3.0)], higher=True)[1]["verdict"].startswith("one seed")


def test_what_a_contender_stands_for():
    options = Namespace(device="cpu", quick=True)
    digits = digits_accuracy.EXPERIMENT
    assert settings("hot+forward=hadamard8", digits, options) == {"profile": "hot", "forward": "hadamard8"}
    assert settings("hot+", digits, options) == {"profile": "hot", "overrides": dict(digits.outer)}
    low = settings("low_pass", digits, options)
    assert low["grad_input"] == low["grad_weight"] and low["grad_input"].tokens == 16
    assert set(settings("luq", digits, options)) == {"profile", "forward", "grad_input", "grad_weight"}
    with pytest.raises(Unavailable, match="a text has no grid"):
        settings("low_pass", char_gpt_loss.EXPERIMENT, options)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_quick_run_and_its_page(name, tmp_path):
    script, names, others = EXPERIMENTS[name]
    results, docs = tmp_path / "results", tmp_path / "docs"
    arguments = ["--quick", "--device", "cpu", "--steps", "4", "--out", str(results)]
    assert script.main([*arguments, "--contenders", ",".join(names + others)]) == 1
    (path,) = results.glob("*.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    assert [row["contender"] for row in data["rows"]] == names
    assert list(data["did not run"]) == others
    assert "unknown profile" in data["did not run"]["no-profile"]
    assert data["sizes"]["steps"] == 4 and data["steps"][-1] == 4
    exact, other = (data["curves"][contender] for contender in names)
    assert len(exact) == len(other) == 2, "seeds"
    assert exact != other and exact[0] != exact[1]
    assert accuracy_page.read_results(results) == [], "quick runs are no results"
    path.write_text(json.dumps({**data, "quick": False}), encoding="utf-8")
    page = ["--results", str(results), "--docs", str(docs)]
    assert accuracy_page.main([*page, "--check"]) == 1
    assert accuracy_page.main(page) == 0
    assert accuracy_page.main([*page, "--check"]) == 0
    text = (docs / "accuracy.md").read_text(encoding="utf-8")
    assert f"| `{names[1]}` |" in text and "`no-profile` did not run" in text
    (picture,) = (docs / "accuracy").glob("*.svg")
    words = " ".join(element.text or "" for element in ElementTree.parse(picture).iter(f"{SVG}text"))
    assert all(contender in words for contender in names)


def test_quick_memory_of_adapters(tmp_path):
    assert lora.main(["--quick", "--device", "cpu", "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*.json")
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    found = {(row["training"], row["contender"]): row for row in rows}
    assert len(found) == 5 and not any(row["did not run"] for row in rows)
    saved = {key: row["saved for backward, MiB"] for key, row in found.items()}
    assert saved["adapters", "inductor"] < saved["whole", "inductor"]
    assert saved["whole", "hot"] < saved["whole", "inductor"]
    assert saved["adapters", "hot"] < saved["adapters", "inductor"]
    for training in ("whole", "adapters"):
        losses = [row["first loss"] for (kind, _), row in found.items() if kind == training]
        assert max(losses) - min(losses) < 1e-3, "all start from the same weights"


def test_contenders_in_processes_of_their_own(monkeypatch, tmp_path):
    """The parent hands its arguments down, reads the last line of each child, and outlives one that fails."""
    script = tmp_path / "script.py"
    script.write_text(
        "import json, sys\n"
        "name = sys.argv[sys.argv.index('--child') + 1]\n"
        "if name == 'hot': sys.exit(3)\n"
        "assert sys.argv[1:3] == ['--quick', '--device']\n"
        "print('compiling')\n"
        "print(json.dumps(dict(name=name, steps=[1, 2], curves=[[3.0, 2.0 + len(name)]] * 2, training_losses=[1.0] * 2,"
        " step_seconds=0.1, saved_bytes=1)))\n"
    )
    monkeypatch.setattr(sys, "argv", [str(script)])
    arguments = ["--quick", "--device", "cpu", "--jobs", "3", "--contenders", "exact,hot,luq", "--out", str(tmp_path)]
    assert char_gpt_loss.main(arguments) == 1
    (path,) = tmp_path.glob("*.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    assert [(row["contender"], row["mean"]) for row in data["rows"]] == [("exact", 7.0), ("luq", 5.0)]
    assert "ended with 3" in data["did not run"]["hot"] and data["processes at a time"] == 3


def test_the_example_trains_both(monkeypatch, capsys):
    if "hadamard" not in torch._dynamo.list_backends():
        pytest.skip("needs the installed package: torch finds the backend by its entry point")
    monkeypatch.setitem(SIZES, "cpu", replace(char_gpt_loss.QUICK, steps=30))
    assert char_gpt.main(["--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["inductor", "hadamard"]
    losses = [float(line.split()[1]) for line in lines]
    assert max(losses) < math.log(VOCABULARY) - 1, "both know more than that there are 128 characters"


def test_who_ends_far_away_is_named_below_the_picture():
    data = {"figure": "loss", "seeds": 2, "device": "a device", "date": "today", "steps": [1, 2, 3]}
    near = {"exact": [[3.0, 2.0, 1.0], [3.1, 2.1, 1.1]], "hot": [[3.0, 2.0, 1.2], [3.1, 2.1, 1.3]]}
    far = {"int4": [[9.0, 9.0, 9.0], [9.0, 9.0, 9.0]], "lost": [[3.0, math.nan, math.nan]] * 2}
    picture = ElementTree.fromstring(curves({**data, "curves": near | far}, "a title"))
    words = [element.text or "" for element in picture.iter(f"{SVG}text")]
    assert "Beyond the picture: int4 (9), lost (nan)" in words
    assert {"exact 1.05", "hot 1.25"} <= set(words)
    lines = [element.get("class") for element in picture.iter(f"{SVG}path")]
    assert sum(kind.startswith("line") for kind in lines) == 2


def test_committed_page_is_what_the_results_give():
    assert accuracy_page.main(["--check"]) == 0, "run python benchmarks/accuracy_page.py"
