"""Text as characters: the Penn Treebank from local files, and the source of Python's standard library, always there."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from examples.mnist import DataError

__all__ = ["Corpus", "penn_treebank", "standard_library", "windows"]

PARTS = ("train", "valid", "test")
PENN_NAMES = ("ptb.char.{}.txt", "ptb.{}.txt")
SOURCE_ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
"""Printable ASCII; what is outside of it is one more symbol."""

SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3", "__pycache__"}


@dataclass(frozen=True)
class Corpus:
    """Symbols as int64 vectors, and what they stand for.

    Attributes:
        alphabet: the symbols, in the order of their numbers.
        train, valid, test: [characters].
        digest: of all three, so that results of different files are told apart.
    """

    alphabet: tuple[str, ...]
    train: Tensor
    valid: Tensor
    test: Tensor
    digest: str


def penn_treebank(folder: str | Path) -> Corpus:
    """The character-level Penn Treebank.

    Args:
        folder: with ``ptb.char.train.txt``, ``….valid.txt`` and ``….test.txt`` (symbols with spaces between, ``_`` for
            a space), or with ``ptb.train.txt`` and so on (words), which are read character by character.

    Raises:
        DataError: files are missing, empty, or have symbols that the training part has not.
    """
    folder = Path(folder)
    for name in PENN_NAMES:
        paths = [folder / name.format(part) for part in PARTS]
        if all(path.exists() for path in paths):
            by_symbol = "char" in name
            try:
                texts = [path.read_text(encoding="utf-8") for path in paths]
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{folder}: {error}") from error
            return _corpus([tuple(text.split()) if by_symbol else tuple(text) for text in texts], str(folder))
    listed = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) if folder.is_dir() else "no such folder"
    wanted = " or ".join(", ".join(name.format(part) for part in PARTS) for name in PENN_NAMES)
    raise DataError(f"{folder} has not all of {wanted} ({listed or 'it is empty'}); give the folder that holds them")


def standard_library(characters: int = 2_000_000) -> Corpus:
    """Modules of the running Python's standard library in the order of their names; every tenth file is for the test,
    the one behind it for validation.

    Args:
        characters: where to stop.

    Raises:
        DataError: this Python comes without the source of its library.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    known, parts, read = frozenset(SOURCE_ALPHABET), {part: list[str]() for part in PARTS}, 0
    for number, path in enumerate(_modules(root)):
        text = path.read_text(encoding="utf-8", errors="replace")[: max(characters - read, 0)]
        read += len(text)
        part = {8: "valid", 9: "test"}.get(number % 10, "train")
        parts[part] += [symbol if symbol in known else "other" for symbol in text]
        if read >= characters:
            break
    if read == 0:
        raise DataError(f"there are no Python files in {root}: this Python has no source of its standard library")
    return _corpus([tuple(parts[part]) for part in PARTS], str(root), (*SOURCE_ALPHABET, "other"))


def _modules(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*.py")):
        if not SKIPPED & set(path.relative_to(root).parts):
            yield path


def _corpus(texts: list[tuple[str, ...]], where: str, alphabet: tuple[str, ...] = ()) -> Corpus:
    if not all(texts):
        raise DataError(f"{where}: the {PARTS[[bool(text) for text in texts].index(False)]} part is empty")
    alphabet = alphabet or tuple(sorted(set(texts[0])))
    number = {symbol: place for place, symbol in enumerate(alphabet)}
    strange = set().union(*map(set, texts)) - set(number)
    if strange:
        raise DataError(f"{where}: {sorted(strange)[:5]} occur, but not in the training part; are these one data set?")
    train, valid, test = (torch.tensor([number[symbol] for symbol in text]) for text in texts)
    digest = hashlib.sha256("\0".join("".join(text) for text in texts).encode()).hexdigest()[:16]
    return Corpus(alphabet, train, valid, test, digest)


def windows(symbols: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Inputs [N, steps] and the symbols that follow them, of windows one behind the other; a rest is not used.

    Raises:
        DataError: there is no whole window.
    """
    count = (len(symbols) - 1) // steps
    if count < 1:
        raise DataError(f"{len(symbols)} characters hold no window of {steps} steps and its successor")
    return symbols[: count * steps].reshape(count, steps), symbols[1 : count * steps + 1].reshape(count, steps)
