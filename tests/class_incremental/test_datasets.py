"""The loaders on small trees in the true format of each dataset, and what they refuse."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from examples.class_incremental.datasets import DATASETS, DatasetError, cifar100, dsads, hapt, pamap2
from examples.class_incremental.datasets.windows import features, filled, windows

RNG = np.random.default_rng(0)


class Python2(pickle._Pickler):  # type: ignore[name-defined,misc]
    """Writes text and bytes alike as the strings of Python 2, as CIFAR-100's files have them."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def string(self, value: str | bytes) -> None:
        data = value.encode("latin1") if isinstance(value, str) else value
        self.write(b"T" + struct.pack("<i", len(data)) + data)
        self.memoize(value)

    dispatch[bytes] = string
    dispatch[str] = string


def python2(value: object) -> bytes:
    out = io.BytesIO()
    Python2(out, protocol=2).dump(value)
    return out.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def cifar(root: Path, changes: dict[bytes, Any] | None = None) -> cifar100.Published:
    """Five images of each of 100 classes for training, two for the test."""
    place, found = root / "cifar-100-python", {}
    place.mkdir(exist_ok=True)
    for name, each in (("train", 5), ("test", 2)):
        labels = [label for label in range(100) for _ in range(each)]
        data = RNG.integers(0, 256, (100 * each, 3072), dtype=np.uint8)
        held = {b"data": data, b"fine_labels": labels, b"coarse_labels": [0] * len(labels), **(changes or {})}
        content = python2({b"batch_label": name, b"filenames": ["a.png"] * len(labels), **held})
        (place / name).write_bytes(content)
        found[name] = (100 * each, hashlib.md5(content).hexdigest())
    (place / "meta").write_bytes(python2({b"fine_label_names": ["apple"] * 100}))
    return cifar100.Published(**found)


def test_cifar100(tmp_path: Path) -> None:
    published = cifar(tmp_path)
    train, test = cifar100.read(tmp_path, published)
    again, _ = cifar100.read(tmp_path / "cifar-100-python", published)
    assert torch.equal(train.x, again.x)
    assert train.x.shape == (500, 3, 32, 32) and test.x.shape == (200, 3, 32, 32)
    assert torch.bincount(train.y).tolist() == [5] * 100 and train.y[:9].tolist() != sorted(train.y[:9].tolist())
    assert train.x.mean((0, 2, 3)).abs().max() < 1e-3 and (train.x.std((0, 2, 3)) - 1).abs().max() < 1e-3
    held = pickle.loads((tmp_path / "cifar-100-python" / "test").read_bytes(), encoding="bytes")
    pixel = test.x[7, 1, 2, 3] - test.x[7, 1, 5, 6]  # green, row 2, column 3
    raw = held[b"data"][7].astype(float)
    width = train.x[:, 1].max() - train.x[:, 1].min()  # of 255 steps
    assert float(pixel) == pytest.approx((raw[1024 + 67] - raw[1024 + 166]) / 255 * float(width), abs=1e-4)


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({b"data": np.zeros((7, 3072), np.uint8)}, r"train has no uint8 data of shape \[500, 3072\]"),
        ({b"data": np.zeros((500, 3072), np.float32)}, "no uint8 data"),
        ({b"fine_labels": [0] * 500}, "has no 5 fine_labels of each of 100 classes"),
        ({b"evil": Evil()}, "asks for posix.mkdir, which no array needs"),
    ],
)
def test_cifar100_refuses(changes: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    published = cifar(tmp_path, changes)
    with pytest.raises(DatasetError, match=message):
        cifar100.read(tmp_path, published)
    assert not (tmp_path / "evil").exists()


def test_cifar100_knows_the_digests_of_the_published_files(tmp_path: Path) -> None:
    cifar(tmp_path)
    with pytest.raises(DatasetError, match="not the published 16019d7e3df5f24257cddd939b257f8d; the file is damaged"):
        cifar100.read(tmp_path)


def test_crops_are_crops() -> None:
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    image = torch.stack([100 * rows + columns + 1] * 3).expand(64, -1, -1, -1)  # every value tells its place
    padded = torch.nn.functional.pad(image[0, 0], (4, 4, 4, 4))
    crops = [padded[i : i + 32, j : j + 32] for i in range(9) for j in range(9)]
    possible = {crop.numpy().tobytes() for crop in (*crops, *(crop.flip(1) for crop in crops))}
    made = cifar100.crop_and_flip(image)
    assert made.shape == image.shape and torch.equal(made[:, 0], made[:, 2])
    assert {one.numpy().tobytes() for one in made[:, 0]} <= possible
    assert len({one.numpy().tobytes() for one in made[:, 0]}) > 30


SMALL_DSADS = dsads.Published(activities=3, people=2, segments=5)


def dsads_tree(root: Path) -> Path:
    for name in SMALL_DSADS.names():
        path = root / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        values = RNG.normal(int(name[1:3]), 1, (125, 45))
        path.write_text("\n".join(",".join(f"{v:.5g}" for v in row) for row in values) + "\n", encoding="ascii")
    return root


def test_dsads(tmp_path: Path) -> None:
    train, test = dsads.read(dsads_tree(tmp_path), SMALL_DSADS)
    assert train.x.shape == (24, 405) and test.x.shape == (6, 405)  # four fifths, one fifth
    assert sorted(test.y.tolist()) == [0, 0, 1, 1, 2, 2]
    assert train.x.mean(0).abs().max() < 1e-5
    means = torch.stack([train.of(range(k, k + 1)).x[:, :45].mean() for k in range(3)])
    assert bool((means.diff() > 1).all())  # labels belong to their files
    published = dsads.PUBLISHED.names()
    assert len(published) == 9120 and published[0] == "a01/p1/s01.txt" and published[-1] == "a19/p8/s60.txt"


def pamap2_tree(root: Path, samples: int = 50) -> pamap2.Published:
    place, lines = root / "Protocol", 0
    place.mkdir()
    for number in range(101, 110):
        labels = np.repeat([0, *pamap2.ACTIVITIES], 5 * samples + 7)
        values = RNG.normal(0, 1, (len(labels), 54))
        values[:, 0], values[:, 1] = np.arange(len(labels)) / 100, labels
        values[:, [4, 21]] += labels[:, None]
        values[RNG.random(values.shape) < 0.01] = np.nan
        values[:, 0], values[:, 1] = np.arange(len(labels)) / 100, labels
        values[:, 2][np.arange(len(labels)) % 11 != 0] = np.nan  # the heart rate comes every eleventh time
        text = "\n".join(" ".join("NaN" if np.isnan(v) else f"{v:g}" for v in row) for row in values)
        (place / f"subject{number}.dat").write_text(text + "\n", encoding="ascii")
        lines += len(labels)
    return pamap2.Published(lines, samples)


def test_pamap2(tmp_path: Path) -> None:
    published = pamap2_tree(tmp_path)
    train, test = pamap2.read(tmp_path, published)
    assert train.x.shape == (9 * 12 * 4, 243) and test.x.shape == (9 * 12, 243)
    assert torch.bincount(test.y).tolist() == [9] * 12 and bool(torch.isfinite(train.x).all())
    level = torch.stack([train.of(range(k, k + 1)).x[:, 0].mean() for k in range(12)])
    assert bool((level.diff() > 0).all())  # the first channel is column 5, the acceleration of the hand
    assert pamap2.CHANNELS[:3] == (4, 5, 6) and pamap2.CHANNELS[9] == 21 and pamap2.CHANNELS[-1] == 49
    with pytest.raises(DatasetError, match=r"have \d+ lines, not 2872533"):
        pamap2.read(tmp_path, pamap2.Published(samples=50))


SMALL_HAPT = hapt.Published(train=60, test=24)


def hapt_tree(root: Path) -> Path:
    for half, lines in (("Train", 60), ("Test", 24)):
        place = root / half
        place.mkdir(parents=True)
        y = np.arange(lines) % 12 + 1
        x = np.clip(RNG.normal(0, 0.2, (lines, 561)), -1, 1)
        x[:, 0] = y / 12
        np.savetxt(place / f"X_{half.lower()}.txt", x, fmt="%.8e")
        np.savetxt(place / f"y_{half.lower()}.txt", y, fmt="%d")
        np.savetxt(place / f"subject_id_{half.lower()}.txt", np.arange(lines) % 30 + 1, fmt="%d")
    return root


def test_hapt(tmp_path: Path) -> None:
    train, test = hapt.read(hapt_tree(tmp_path), SMALL_HAPT)
    assert train.x.shape == (60, 561) and test.x.shape == (24, 561)
    assert torch.bincount(train.y).tolist() == [5] * 12
    assert torch.allclose(train.x[:, 0], (train.y + 1) / 12)


def spoil(path: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    def spoiled(root: Path) -> None:
        (root / path).write_text(change((root / path).read_text(encoding="ascii")), encoding="ascii")

    return spoiled


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "Test" / "y_test.txt").unlink(), r"no 'Test/y_test.txt' \(1 of 6 names are missing\)"),
        (lambda root: shutil.rmtree(root / "Train"), r"no 'Train/X_train.txt' \(3 of 6.*folder 'HAPT Data Set'"),
        (spoil("Train/X_train.txt", lambda text: text.replace(" ", ",")), "X_train.txt has 1 columns, not 561"),
        (spoil("Train/X_train.txt", lambda text: text[:-4000]), "is no table of numbers.*unpack the original"),
        (spoil("Test/X_test.txt", lambda text: text[: text.rindex("\n", 0, -1) + 1]), "has 23 rows, not 24"),
        (spoil("Train/X_train.txt", lambda text: "7" + text[text.index(" ") :]), "values outside of −1..1"),
        (spoil("Train/X_train.txt", lambda text: "nan" + text[text.index(" ") :]), "values outside of −1..1"),
        (spoil("Train/y_train.txt", lambda text: text.replace("12", "13")), "the label 13, which is none of 1..12"),
        (spoil("Train/subject_id_train.txt", lambda text: text.replace("30", "31")), "the label 31"),
        (spoil("Train/y_train.txt", lambda text: text.replace("12", "twelve")), "is no table of numbers"),
        (spoil("Train/y_train.txt", lambda text: ""), "has 0 columns, not 1"),
    ],
)
def test_damaged_files_are_named(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    root = hapt_tree(tmp_path / "HAPT Data Set")
    hapt.read(tmp_path, SMALL_HAPT)
    damage(root)
    with pytest.raises(DatasetError, match=message):
        hapt.read(root if "folder" not in message else tmp_path, SMALL_HAPT)


def test_a_channel_without_values_is_named(tmp_path: Path) -> None:
    published = pamap2_tree(tmp_path)
    path = tmp_path / "Protocol" / "subject103.dat"
    rows = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
    path.write_text("\n".join(" ".join([*row[:4], "NaN", *row[5:]]) for row in rows) + "\n", encoding="ascii")
    with pytest.raises(DatasetError, match=r"subject103\.dat has no value at all in column 5"):
        pamap2.read(tmp_path, published)


@pytest.mark.parametrize("name", [name for name, dataset in DATASETS.items() if dataset.origin])
def test_a_missing_folder_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=f"{name} is read from a folder: name it with --data"):
        DATASETS[name].load(None)
    with pytest.raises(DatasetError, match=f"{name}: there is no folder .*nowhere; it is to hold .*unpacked"):
        DATASETS[name].load(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="names are missing"):
        DATASETS[name].load(tmp_path)


def test_nine_features_of_each_channel() -> None:
    time = np.arange(100)
    wave = np.sin(2 * np.pi * 10 * time / 100)  # 10 of 50 cycles: a fifth of the way to half the sampling rate
    signals = np.stack([wave, 3 + 0.5 * time], 1)[None]
    found = features(torch.tensor(signals)).reshape(9, 2).numpy()
    expected = [
        signals[0].mean(0),
        signals[0].std(0, ddof=1),
        signals[0].min(0),
        signals[0].max(0),
        *np.percentile(signals[0], [25, 50, 75], axis=0),
        np.abs(np.diff(signals[0], axis=0)).mean(0),
        [0.2, 0.02],
    ]
    assert np.allclose(found, np.stack(expected), atol=1e-12)


def test_windows_lie_within_one_label() -> None:
    labels = np.repeat([1, 2, 1], [7, 4, 6])
    found = windows(np.arange(17.0)[:, None], labels, 3)
    assert {label: part[:, 0, 0].tolist() for label, part in found.items()} == {1: [0, 3, 11, 14], 2: [7]}


def test_missing_values_lie_on_the_line_between_their_neighbours() -> None:
    nan = np.nan
    signals = np.array([[nan, 1.0], [2, nan], [nan, nan], [4, 7], [nan, 8]])
    assert filled(signals).tolist() == [[2, 1], [2, 3], [3, 5], [4, 7], [4, 8]]
    assert np.isnan(filled(np.full((3, 1), nan))).all()
