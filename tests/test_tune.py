"""``hadamard-fx tune``: what is measured, where it is kept, that it prices from then on, and every wrong turn."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from hadamard_fx.cli import main
from hadamard_fx.cost_model import tuned, tuning
from hadamard_fx.cost_model.device_profile import bundled_profile, load_profile, profile_for
from hadamard_fx.errors import DeviceError, OptionError
from hadamard_fx.kernels.traffic import UNITS


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HADAMARD_FX_CONFIG_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call takes as long as its name says: a measurement in no time, and the same every time."""

    def seconds(call: object, repeats: int = 8) -> float:
        call()  # type: ignore[operator]
        return 1e-2

    monkeypatch.setattr(tuning, "median_seconds", seconds)


def test_a_real_measurement_is_plausible_and_prices_from_then_on(capsys: pytest.CaptureFixture[str]) -> None:
    before = profile_for("cpu")
    assert before == bundled_profile("cpu")
    assert main(["tune", "--device", "cpu"]) == 0
    said = capsys.readouterr().err
    assert "no figure was taken from" in said and "compress_tokens" in said and str(tuned.path_of("cpu")) in said
    after = profile_for("cpu")
    assert after.name.startswith("tuned (") and after.digest() != before.digest(), "the compile key follows the profile"
    assert 1e9 < after.bandwidth < 2e12 and 1e-8 < after.launch < 1e-2
    assert all(1e7 < after.rates[unit] < 1e15 for unit in UNITS)
    assert (after.carrier, after.token_group, after.column_group) == ("int8", 0, 0)
    assert all(source.startswith("measured: hadamard-fx tune") for key, source in after.sources.items() if key in UNITS)


@pytest.mark.usefixtures("quick")
def test_show_and_forget(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--device", "cpu", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert main(["tune", "--device", "cpu", "--show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == measured and measured["bandwidth"]["value"] > 0
    assert main(["tune", "--device", "cpu", "--forget"]) == 0
    assert profile_for("cpu") == bundled_profile("cpu")
    assert main(["tune", "--device", "cpu", "--forget"]) == 1
    assert "nothing was measured" in capsys.readouterr().err
    assert main(["tune", "--device", "cpu", "--show"]) == 0
    assert bundled_profile("cpu").name in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_figures_follow_from_the_times() -> None:
    found = tuning.measure("cpu", bundled_profile("cpu"))
    assert found.data["bandwidth"]["value"] == pytest.approx(2 * 4 * 2**24 / 1e-2 / 1e9)
    assert found.data["launch"]["value"] == pytest.approx(1e4)
    products = 2 * (256**3 + 4 * 256 * 256 * 64)  # 20 ms: long enough at the first size
    assert found.data["rates"]["int8"]["value"] == pytest.approx(products / 2e-2 / 1e9)
    assert all(residual.measured == 1e-2 for residual in found.residuals) and found.spread >= 1


def test_a_file_of_another_device_is_not_used(folder: Path) -> None:
    (folder / "profiles").mkdir()
    (folder / "profiles" / "another-cpu.json").write_text("{}")
    assert profile_for("cpu") == bundled_profile("cpu")


@pytest.mark.usefixtures("quick")
def test_a_damaged_file_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["tune", "--device", "cpu"])
    path = tuned.path_of("cpu")
    path.write_text(path.read_text()[:100])
    with pytest.raises(OptionError, match="no complete JSON") as caught:
        profile_for("cpu")
    assert str(path) in str(caught.value)
    assert main(["tune", "--device", "cpu"]) == 0, "measuring again mends it"
    assert load_profile(path).name.startswith("tuned (")


@pytest.mark.usefixtures("quick")
def test_what_cannot_be_kept_leaves_the_file_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tuning.measure("cpu", bundled_profile("cpu"))
    path = tuned.save("cpu", found.data)
    before = path.read_text()

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(DeviceError, match=r"No space left.*HADAMARD_FX_CONFIG_DIR"):
        tuned.save("cpu", {"other": 1})
    assert path.read_text() == before and not list(path.parent.glob("*.tmp"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_device_to_measure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--device", "cuda"]) == 1
    assert "no CUDA device" in capsys.readouterr().err
