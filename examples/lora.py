"""Fine-tune a vision transformer by low-rank adapters on a frozen base (LoRA, Hu et al. 2021, arXiv 2106.09685).

A transformer that has learned handwritten digits adapts to their mirror images, as a whole and by adapters only, each
compiled by Inductor and by hadamard. A frozen layer has no gradient of its weight: nothing of its input is kept, and
only the gradient of its input is computed, by ``hot`` in 4 bits. An adapter reads the same input and needs it, which
``hot`` keeps compressed.

    python examples/lora.py [--rank N] [--layers REGEX] [--epochs N] [--seeds N] [--device cpu|cuda]
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this is a script of the checkout, not of the package

from examples.digits_vit import SIZES, batches, digits, task
from examples.side_by_side import Contender, Task, train

__all__ = ["ADAPTED", "ADAPTERS_PRICED", "Adapter", "adapt"]

ADAPTED = r".*attention\.(qkv|proj)"
"""Whole names of the layers that get adapters by default, those of the attention."""

ADAPTERS_PRICED = {r".*\.(down|up)": "auto"}
"""Overrides: an adapter's products are small, so that the cost model decides about them."""


class Adapter(nn.Module):
    """y = x wᵀ + b + (x Dᵀ) Uᵀ α/r, w and b frozen, D [r, I] and U [O, r] trained; U starts at zero.

    Args:
        base: the layer, which is frozen.
        rank: r, at least 1.
        alpha: α; by default 2 r.

    Raises:
        ValueError: a rank below 1.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float | None = None) -> None:
        super().__init__()
        if rank < 1:
            raise ValueError(f"an adapter's rank must be at least 1, got {rank}")
        self.base = base.requires_grad_(False)
        like = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.down = nn.Linear(base.in_features, rank, bias=False, **like)
        self.up = nn.Linear(rank, base.out_features, bias=False, **like)
        self.scale = (2 * rank if alpha is None else alpha) / rank
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base(x) + self.up(self.down(x)) * self.scale
        return result


def adapt(model: nn.Module, rank: int, layers: str = ADAPTED) -> nn.Module:
    """Freeze a model, and put an adapter beside every linear layer whose whole name matches ``layers``; in place.

    Raises:
        ValueError: no linear layer has such a name.
    """
    model.requires_grad_(False)
    found = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    chosen = [(name, layer) for name, layer in found if re.fullmatch(layers, name)]
    if not chosen:
        names = ", ".join(name for name, _ in found)
        raise ValueError(f"no linear layer's whole name matches {layers!r}; there are: {names or 'none'}")
    for name, layer in chosen:
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, Adapter(layer, rank))
    return model


def mirrored(base: Task, device: str, size: int) -> Task:
    """The task with all images mirrored."""
    images, labels, test_images, test_labels = digits(device)

    def accuracy(model: nn.Module) -> float:
        return 100 * (model(test_images.flip(-1)).argmax(1) == test_labels).float().mean().item()

    def endless(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from batches(seed, images.flip(-1), labels, size)

    return replace(base, batches=endless, test=accuracy)


def contenders(kind: str) -> list[Contender]:
    """Inductor and hadamard for one way of fine-tuning."""

    def hot(model: nn.Module) -> Callable[[Tensor], Tensor]:
        options = {"profile": "hot", "overrides": {"embed|head": "exact"}}
        compiled: Callable[[Tensor], Tensor] = torch.compile(model, backend="hadamard", options=options)
        return compiled

    return [Contender(f"{kind}, inductor", torch.compile), Contender(f"{kind}, hot", hot)]


def table(found: list[tuple[Contender, int]]) -> Table:
    """(contender, trained parameters) of all."""
    made = Table("", "accuracy on mirrored digits", "trained parameters", "saved for backward", "median step")
    for contender, parameters in found:
        accuracy = f"{statistics.mean(contender.scores):.2f} %"
        saved, step = f"{contender.saved / 2**20:.1f} MiB", f"{contender.step_seconds * 1e3:.1f} ms"
        made.add_row(contender.name, accuracy, f"{parameters:,}", saved, step)
    return made


def main(arguments: list[str] | None = None) -> int:
    """Run the demonstration; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rank", type=int, default=8, help="of the adapters (default 8)")
    parser.add_argument("--layers", default=ADAPTED, help="regular expression over whole names of the adapted layers")
    parser.add_argument("--epochs", type=int, help="passes over the images, to learn them and to adapt")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", choices=sorted(SIZES), help="default: cuda where there is one")
    options = parser.parse_args(arguments)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    sizes = SIZES[device] if options.epochs is None else replace(SIZES[device], epochs=options.epochs)
    console = Console()
    learned = task(sizes, device)
    teacher = Contender("the base", torch.compile)
    train([teacher], learned, 1, device, Console(stderr=True))
    state = teacher.model.state_dict()
    target = mirrored(learned, device, sizes.batch)
    console.print(f"the base: {teacher.scores[0]:.2f} % of digits, {target.test(teacher.model):.2f} % of mirrored ones")

    def base() -> nn.Module:
        model = sizes.model().to(device)
        model.load_state_dict(state)
        return model

    found: list[tuple[Contender, int]] = []
    for kind, model in (("all", base), ("adapters", lambda: adapt(base(), options.rank, options.layers))):
        own = contenders(kind)
        train(own, replace(target, model=model), options.seeds, device, Console(stderr=True))
        found += [(c, sum(p.numel() for p in c.model.parameters() if p.requires_grad)) for c in own]
    console.print(table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
