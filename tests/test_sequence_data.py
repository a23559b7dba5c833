"""The loaders of the recurrent examples: small files of the real layouts, and every way in which they can be wrong."""

from __future__ import annotations

import gzip
import struct
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.mnist import FILES, DataError, mnist, read_idx
from examples.text_data import SOURCE_ALPHABET, penn_treebank, standard_library, windows


def idx(array: torch.Tensor) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + bytes(array.flatten().tolist())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three training and two test images of 4 × 4, the first file compressed."""
    for seed, (count, names) in enumerate(zip((3, 2), FILES.values(), strict=True)):
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(256, (count, 4, 4), dtype=torch.uint8, generator=generator)
        (tmp_path / names[0]).write_bytes(idx(images))
        (tmp_path / names[1]).write_bytes(idx(torch.arange(count, dtype=torch.uint8)))
    first = tmp_path / FILES["train"][0]
    (tmp_path / f"{first.name}.gz").write_bytes(gzip.compress(first.read_bytes()))
    first.unlink()
    return tmp_path


def test_mnist(folder: Path) -> None:
    x, y, test_x, test_y = mnist(folder)
    assert x.shape == (3, 16, 1) and test_x.shape == (2, 16, 1) and x.dtype == torch.float32
    assert y.tolist() == [0, 1, 2] and test_y.tolist() == [0, 1] and y.dtype == torch.int64
    raw = read_idx(folder / f"{FILES['train'][0]}.gz")
    assert torch.equal((x * 255).round().to(torch.uint8), raw.reshape(3, 16, 1))


def test_permuted_pixels_are_the_same_order_for_all(folder: Path) -> None:
    x, _, test_x, _ = mnist(folder)
    other, _, test_other, _ = mnist(folder, permuted=True)
    order = [next(k for k in range(16) if torch.equal(x[:, k], other[:, j])) for j in range(16)]
    assert sorted(order) == list(range(16)) and order != list(range(16))
    assert torch.equal(test_x[:, order], test_other)


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda data: None, "has no t10k-labels-idx1-ubyte or .*give the folder"),
        (lambda data: b"PK" + data[2:], "no idx file of bytes: it begins with 50 4b 08 01"),
        (lambda data: data[:2] + b"\x0d" + data[3:], "no idx file of bytes"),
        (lambda data: data[:6], "ends within its header"),
        (lambda data: data[:-1], "holds 1 bytes where its header .* says 2"),
        (lambda data: b"", "begins with nothing"),
        (lambda data: idx(torch.tensor([1, 2, 3], dtype=torch.uint8)), "do not belong together"),
        (lambda data: idx(torch.tensor([1, 12], dtype=torch.uint8)), "label 12, above 9"),
    ],
)
def test_broken_mnist(folder: Path, damage, match) -> None:
    path = folder / FILES["test"][1]
    damaged = damage(path.read_bytes())
    path.unlink() if damaged is None else path.write_bytes(damaged)
    with pytest.raises(DataError, match=match):
        mnist(folder)


def test_missing_folder_and_broken_archive(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        mnist(tmp_path / "absent")
    (tmp_path / "a.gz").write_bytes(b"\x1f\x8b\x08 no archive")
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(tmp_path / "a.gz")


@pytest.mark.parametrize("characters", [True, False], ids=["characters", "words"])
def test_penn_treebank(tmp_path: Path, characters: bool) -> None:
    texts = {"train": " a b c _ a\n", "valid": " a _\n", "test": " b b\n"} if characters else {
        "train": " ab c\n", "valid": "a b\n", "test": "bb\n"
    }  # fmt: skip
    for part, text in texts.items():
        (tmp_path / f"ptb.{'char.' if characters else ''}{part}.txt").write_text(text, encoding="utf-8")
    corpus = penn_treebank(tmp_path)
    assert corpus.alphabet == (("_", "a", "b", "c") if characters else ("\n", " ", "a", "b", "c"))
    read = "".join(corpus.alphabet[number] for number in corpus.train)
    assert read == ("abc_a" if characters else " ab c\n")
    (tmp_path / f"ptb.{'char.' if characters else ''}test.txt").write_text("z z", encoding="utf-8")
    with pytest.raises(DataError, match=r"'z'.* occur, but not in the training part"):
        penn_treebank(tmp_path)
    (tmp_path / f"ptb.{'char.' if characters else ''}test.txt").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="the test part is empty"):
        penn_treebank(tmp_path)


def test_no_penn_treebank(tmp_path: Path) -> None:
    (tmp_path / "ptb.train.txt").write_text("a", encoding="utf-8")
    with pytest.raises(DataError, match=r"has not all of ptb.char.train.txt.*\(ptb.train.txt\); give the folder"):
        penn_treebank(tmp_path)


def test_standard_library() -> None:
    corpus = standard_library(200_000)
    sizes = [len(part) for part in (corpus.train, corpus.valid, corpus.test)]
    assert sum(sizes) == 200_000 and min(sizes) > 500
    assert corpus.alphabet == (*SOURCE_ALPHABET, "other")
    text = "".join(corpus.alphabet[number] for number in corpus.train)
    assert "import " in text and "\ndef " in text
    assert standard_library(200_000).digest == corpus.digest != standard_library(100_000).digest


def test_windows() -> None:
    x, y = windows(torch.arange(11), 5)
    assert x.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]] and torch.equal(y, x + 1)
    with pytest.raises(DataError, match="no window"):
        windows(torch.arange(5), 5)
