"""Text that is always there: the source of Python's own standard library, as characters to model.

Files are split by a hash of their path, so that the split is the same on every machine and hardly changes between
versions of Python. The order of the files is that of their paths.
"""

from __future__ import annotations

import functools
import hashlib
import sysconfig
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["VOCABULARY", "characters", "library_source"]

VOCABULARY = 128
"""ASCII; whatever is beyond counts as its last character."""

HELD_OUT = 10
"""One file of so many is held out."""

_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def characters(text: str) -> Tensor:
    """The codes of a text, uint8 [characters]."""
    codes = text.encode("utf-32-le")
    wide = torch.frombuffer(bytearray(codes), dtype=torch.int32) if codes else torch.empty(0, dtype=torch.int32)
    return wide.clamp(max=VOCABULARY - 1).to(torch.uint8)


@functools.cache
def library_source(limit: int | None = None) -> tuple[Tensor, Tensor]:
    """The characters of the files to train on and of those held out, uint8 [characters] each.

    Args:
        limit: characters of each part at most; None: all of them.

    Raises:
        FileNotFoundError: this Python has no library source (a frozen or stripped one).
    """
    root = Path(sysconfig.get_path("stdlib"))
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        name = path.relative_to(root)
        if not _LEFT_OUT.intersection(name.parts):
            held_out = int.from_bytes(hashlib.sha256(name.as_posix().encode()).digest()[:8], "big") % HELD_OUT == 0
            parts[held_out].append(characters(path.read_text(encoding="utf-8", errors="replace")))
    if not all(parts):
        raise FileNotFoundError(
            f"no source of the standard library in {root}: use a Python that comes with its library's .py files"
        )
    train, held = (torch.cat(part)[:limit] for part in parts)
    return train, held
