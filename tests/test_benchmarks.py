"""The benchmarks work: models, contenders, what becomes of one that fails, and the page of the results."""

from __future__ import annotations

import gc
import itertools
import json
import math
import sys
import weakref
import xml.etree.ElementTree as ElementTree
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import _contenders  # noqa: E402  scripts, no package: found on the path only
import page  # noqa: E402
import training_step  # noqa: E402
from _labels import labels  # noqa: E402
from _models import MODELS  # noqa: E402
from _results import Entry, Run, front, read_runs  # noqa: E402
from _steps import stepper  # noqa: E402
from _svg import text_width, ticks  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("model", MODELS)
def test_quick_form_of_every_model_learns(model):
    options = Namespace(model=model, batch=0, device="cpu", quick=True, precision="bf16")
    try:
        steps = stepper("eager", options)
    except ImportError as error:
        pytest.skip(str(error))
    first, second = float(steps.step()), float(steps.step())
    assert math.isfinite(first)
    assert second < first
    assert steps.saved() is None


@pytest.mark.parametrize(
    ("contender", "options"),
    [
        ("auto", {"profile": "auto"}),
        ("hot", {"profile": "hot"}),
        ("hot+forward=hadamard8", {"profile": "hot", "forward": "hadamard8"}),
        (
            "hot+grad_weight.group=0+grad_input.carrier=int8",
            {"profile": "hot", "grad_weight": {"group": 0}, "grad_input": {"carrier": "int8"}},
        ),
        ("hot+grad_weight.rank=4+grad_weight.bits=4", {"profile": "hot", "grad_weight": {"rank": 4, "bits": 4}}),
    ],
)
def test_a_profile_with_options(contender, options):
    assert _contenders.options_of(contender) == options


def test_memory_budget_holds_for_its_own_compilation_only(monkeypatch):
    budgets = []

    def compiler(graph, inputs):
        budgets.append(_contenders.functorch_config.activation_memory_budget)
        return graph.forward

    monkeypatch.setattr(_contenders, "compile_fx", compiler)
    before = _contenders.functorch_config.activation_memory_budget
    for contender in ("inductor@0.8", "inductor@0.2"):
        compiled = _contenders.compile_with(contender, nn.Linear(4, 4))
        assert _contenders.functorch_config.activation_memory_budget == before
        compiled(torch.ones(2, 4))
    assert budgets == [0.8, 0.2]
    assert _contenders.functorch_config.activation_memory_budget == before
    torch._dynamo.reset()


def test_torchao_compiles_last_and_says_what_it_lacks(monkeypatch):
    assert _contenders.measured_last(("torchao", "inductor", "hot")) == ["inductor", "hot", "torchao"]
    monkeypatch.setitem(sys.modules, "torchao.float8", Namespace())
    layers = nn.Sequential(nn.Linear(12, 16), nn.Conv2d(16, 16, 1))
    with pytest.raises(_contenders.Unavailable, match="multiples of 16"):
        _contenders.compile_with("torchao_rowwise", layers)


def test_full_float32_is_undone():
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with _contenders.full_float32():
        assert (matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (False, False)
    assert (matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_a_contender_out_of_memory_leaves_nothing_behind():
    kept = []

    def work():
        module = nn.Linear(8, 8)
        kept.append(weakref.ref(module))
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        except torch.OutOfMemoryError as error:
            raise RuntimeError(f"{type(module)} does not compile") from error

    gc.disable()
    try:
        assert _contenders.attempt(work) == (None, "out of memory", True)
    finally:
        gc.enable()
    assert kept[0]() is None


def test_what_does_not_run_is_a_row_and_not_the_end(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(training_step, "warm_up", lambda device: None)
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    arguments = ["--quick", "--device", "cpu", "--model", "digits", "--out", str(tmp_path)]
    assert training_step.main([*arguments, "--contenders", "eager,torchao"]) == 0
    assert training_step.main([*arguments, "--contenders", "eager,no-profile,eager32"]) == 1
    assert "OptionError" in capsys.readouterr().err
    (path,) = tmp_path.glob("*.json")
    data = json.loads(path.read_text(encoding="utf-8"))
    eager, unknown, eager32 = data["rows"]
    assert [row["contender"] for row in data["rows"]] == ["eager", "no-profile", "eager32"]
    assert "unknown profile" in unknown["did not run"]
    assert unknown["step, ms"] is None
    assert eager["did not run"] == eager32["did not run"] == ""
    assert eager["step, ms"] > 0
    assert eager["times inductor's speed"] is None  # Inductor did not take part
    assert abs(eager["first loss"] - eager32["first loss"]) < 0.05
    assert data["description"].startswith("examples.vit for digits")
    assert read_runs(tmp_path, ()) == []  # quick runs are no results


def entry(contender: str, time: float | None, memory: float | None, reason: str = "") -> dict[str, Any]:
    row = {"contender": contender, "step, ms": time, "peak, GiB": memory, "first step, s": time and 20.0}
    return {**row, "did not run": reason} if reason else row


ROWS = (
    *(entry("inductor", 68.9, 14.8), entry("inductor@0.6", 72.6, 10.0), entry("torchao", 83.0, 10.4)),
    *(entry("hot", 70.0, 11.0), entry("auto", 66.0, 11.2), entry("hot+forward=hadamard8", 65.5, 11.2)),
    *(entry("eager32", 612.0, 29.8), entry("torchao_rowwise", None, None, "No module named 'torchao'")),
)


def write(folder: Path, name: str, **changes: Any) -> None:
    data = {"model": "vit_b16", "precision": "bf16", "device": "NVIDIA H200", "date": "2026-11-22", "quick": False}
    data |= {"versions": {"torch": "2.11.0"}, "commit": "1a2b3c4", "command": "python benchmarks/training_step.py"}
    folder.mkdir(exist_ok=True)
    path = folder / f"training_step-{name}.json"
    path.write_text(json.dumps({**data, "rows": ROWS, **changes}), encoding="utf-8")


def test_pareto_front():
    def of(*places: tuple[str, float, float]) -> list[str]:
        return [e.contender for e in front([Entry(name, time, 1.0, memory) for name, time, memory in places])]

    assert of(("slow", 3, 1), ("fast", 1, 3), ("beaten", 2, 4), ("middle", 2, 2)) == ["fast", "middle", "slow"]
    assert of(("a", 1, 1), ("same", 1, 1), ("as fast", 1, 2)) == ["a", "same"]
    assert front([Entry("not measured"), Entry("on a CPU", 1.0)]) == []
    run = Run.from_json({**dict.fromkeys(Run.__annotations__, ""), "rows": ROWS}, "file")
    assert [e.contender for e in front(run.entries)] == ["hot+forward=hadamard8", "hot", "inductor@0.6"]


def test_the_newest_run_of_every_model_and_device_counts(tmp_path):
    write(tmp_path, "old", date="2026-11-21")
    write(tmp_path, "new", time="2026-11-22T10:00:00+00:00", commit="new")
    write(tmp_path, "earlier", time="2026-11-22T09:00:00+00:00")
    write(tmp_path, "quick", time="2026-11-22T11:00:00+00:00", quick=True)
    write(tmp_path, "nothing", time="2026-11-22T12:00:00+00:00", rows=[entry("hot", None, None, "no package")])
    write(tmp_path, "other", device="AMD EPYC", model="zoo")
    write(tmp_path, "autocast", precision="autocast", model="llama_1b")
    found = [(run.model, run.precision, run.commit) for run in read_runs(tmp_path, ("llama_1b", "vit_b16"))]
    assert found == [("llama_1b", "autocast", "1a2b3c4"), ("vit_b16", "bf16", "new"), ("zoo", "bf16", "1a2b3c4")]


def test_page_keeps_losses_and_names_its_origin(tmp_path):
    write(tmp_path / "results", "vit", description="ViT-B/16 & more")
    options = ["--results", str(tmp_path / "results"), "--docs", str(tmp_path / "docs")]
    stale = tmp_path / "docs" / "benchmarks" / "plane-of-old.svg"
    stale.parent.mkdir(parents=True)
    stale.write_text("<svg/>")
    assert page.main([*options, "--check"]) == 1
    assert page.main(options) == 0
    assert page.main([*options, "--check"]) == 0
    assert not stale.exists()
    text = (tmp_path / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert "| `hot` | 70.0 | 0.98× | 11.00 | 20.0 |" in text
    assert "| `torchao_rowwise` | – | – | – | – |" in text
    assert "- `torchao_rowwise` did not run: No module named 'torchao'" in text
    assert "Losses: `torchao` on vit_b16 (0.83×), `hot` on vit_b16 (0.98×)." in text
    for origin in ("NVIDIA H200", "2026-11-22", "torch 2.11.0", "1a2b3c4", "`python benchmarks/training_step.py`"):
        assert origin in text
    with (tmp_path / "docs" / "benchmarks.md").open("a") as file:
        file.write("by hand")
    assert page.main([*options, "--check"]) == 1


def test_pictures_show_every_contender_in_text(tmp_path):
    write(tmp_path, "vit", description="ViT-B/16 & more")
    files = page.make(read_runs(tmp_path, ()), "results")
    pictures = {name: ElementTree.fromstring(text) for name, text in files.items() if name.endswith(".svg")}
    assert len(pictures) == 2
    for name, picture in pictures.items():
        words = [element.text or "" for element in picture.iter(f"{SVG}text")]
        missing = [row["contender"] for row in ROWS if row["step, ms"] and row["contender"] not in " ".join(words)]
        assert not missing, name
        assert any("ViT-B/16 & more" in word for word in words)
    bars = next(picture for name, picture in pictures.items() if "speed" in name)
    words = [element.text for element in bars.iter(f"{SVG}text")]
    assert {"0.98×", "0.83×", "1.05×", "0.11×", "did not run"} <= set(words)


def test_labels_cover_nothing():
    generator = torch.Generator().manual_seed(0)
    names = ["hot+forward=hadamard8", "hot", "auto", "inductor@0.8", "torchao_rowwise", "eager"]
    frame = (0.0, 0.0, 600.0, 300.0)
    for _ in range(5):
        x = (150 + 200 * torch.rand(len(names), generator=generator)).tolist()
        y = (100 + 100 * torch.rand(len(names), generator=generator)).tolist()
        boxes = labels(names, list(zip(x, y, strict=True)), [], frame)
        for one, other in itertools.combinations(boxes, 2):
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        for name, box in zip(names, boxes, strict=True):
            assert box[2] - box[0] >= text_width(name) - 1e-6
            assert not any(box[0] < a < box[2] and box[1] < b < box[3] for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize(("low", "high"), [(0, 1.13), (61.2, 89), (0.00123, 0.0018), (5, 5), (0, 10.0)])
def test_ticks_are_round_and_around_the_values(low, high):
    found = ticks(low, high)
    steps = {round((b - a) / (found[1] - found[0]), 6) for a, b in itertools.pairwise(found)}
    assert found[0] <= low <= high <= found[-1]
    assert steps == {1.0}
    assert 3 <= len(found) <= 10


def test_page_without_results_says_so(tmp_path):
    files = page.make(read_runs(tmp_path, ()), "results")
    assert list(files) == ["benchmarks.md"]
    assert "There are no results yet" in files["benchmarks.md"]


def test_committed_page_is_what_the_results_give():
    assert page.main(["--check"]) == 0, "run python benchmarks/page.py"
