"""What a dataset is here: examples with labels, how HDQT divides them into tasks, and how it trains on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hadamard_fx.errors import HadamardError

from ..data import Split
from ..settings import Settings

__all__ = ["DATASETS", "Dataset", "DatasetError", "register"]


class DatasetError(HadamardError, ValueError):
    """The files of a dataset are missing, damaged, or laid out in another way."""


@dataclass(frozen=True)
class Dataset:
    """A source of examples.

    Attributes:
        classes: how many; labels are 0 and up.
        each: classes of a task.
        shape: of one example.
        model: the name of the model that is trained by default.
        settings: of the training of a task.
        read: from a folder to (training, test) examples, the training ones shuffled.
        origin: where a person gets the files; "" where they come with a package.
        augment: of a batch of training inputs.
    """

    name: str
    classes: int
    each: int
    shape: tuple[int, ...]
    model: str
    settings: Settings
    read: Callable[[Path], tuple[Split, Split]]
    origin: str = ""
    augment: Callable[[Tensor], Tensor] = lambda x: x

    def load(self, root: Path | None) -> tuple[Split, Split]:
        """(training, test) examples.

        Raises:
            DatasetError: there is no such folder, or ``read`` refuses its files.
        """
        if not self.origin:
            return self.read(Path())
        if root is None:
            raise DatasetError(f"{self.name} is read from a folder: name it with --data FOLDER; it holds {self.origin}")
        if not root.is_dir():
            raise DatasetError(f"{self.name}: there is no folder {root}; it is to hold {self.origin}")
        return self.read(root)


DATASETS: dict[str, Dataset] = {}


def register(dataset: Dataset) -> Dataset:
    """Make a dataset known by its name."""
    DATASETS[dataset.name] = dataset
    return dataset
