"""A small character GPT, trained from scratch on the source of Python's standard library, by Inductor and by hadamard.

Both start from the same weights and see the same characters, and their steps alternate. The model is plain PyTorch;
the loss is tested on files that were held out, without a compiler, in nats per character.

    python examples/char_gpt.py [--profile hot|auto|exact] [--steps N] [--seeds N] [--device cpu|cuda]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # this is a script of the checkout, not of the package

from examples.library_source import VOCABULARY, library_source
from examples.side_by_side import Contender, Task, autocast, train
from examples.vit import Block

__all__ = ["SIZES", "CharGPT", "Sizes", "task"]

TESTED = 64
"""Held-out sequences, evenly spaced, that a model is tested on."""


class CharGPT(nn.Module):
    """Characters [B, T] → logits [B, T, VOCABULARY] of the next one; pre-norm blocks, learned positions."""

    def __init__(self, context: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, dim)
        self.position = nn.Parameter(torch.randn(context, dim) * 0.02)
        self.blocks = nn.ModuleList(Block(dim, heads, causal=True) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, VOCABULARY)
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, characters: Tensor) -> Tensor:
        x = self.embed(characters) + self.position[: characters.shape[1]]
        for block in self.blocks:
            x = block(x)
        result: Tensor = self.head(self.norm(x))
        return result


@dataclass(frozen=True)
class Sizes:
    """What is trained on a device.

    Attributes:
        context: characters of a sequence.
        limit: characters of the text at most.
    """

    context: int
    dim: int
    depth: int
    heads: int
    batch: int
    steps: int
    rate: float
    amp: bool
    limit: int | None = None

    def model(self) -> CharGPT:
        return CharGPT(self.context, self.dim, self.depth, self.heads)


SIZES = {
    "cpu": Sizes(context=128, dim=128, depth=3, heads=4, batch=16, steps=300, rate=3e-3, amp=False),
    "cuda": Sizes(context=256, dim=384, depth=6, heads=6, batch=32, steps=1000, rate=1e-3, amp=True),
}


def batches(seed: int, text: Tensor, sizes: Sizes) -> Iterator[tuple[Tensor, Tensor]]:
    """Sequences from random places, and each one's next characters, int64 [batch, context]."""
    generator = torch.Generator().manual_seed(seed)
    window = torch.arange(sizes.context + 1, device=text.device)
    while True:
        start = torch.randint(len(text) - sizes.context, (sizes.batch, 1), generator=generator).to(text.device)
        characters = text[start + window].long()
        yield characters[:, :-1].contiguous(), characters[:, 1:].contiguous()


def held_out(text: Tensor, context: int) -> Tensor:
    """Sequences [TESTED, context + 1], evenly spaced."""
    start = torch.linspace(0, len(text) - context - 1, TESTED, dtype=torch.float64, device=text.device).long()
    return text[start[:, None] + torch.arange(context + 1, device=text.device)].long()


def task(sizes: Sizes, device: str) -> Task:
    """Learn the text; tested by the loss on held-out characters ten times in the course of a training."""
    text, other = (part.to(device) for part in library_source(sizes.limit))
    tested = held_out(other, sizes.context)

    def loss(model: nn.Module) -> float:
        with autocast(device, sizes.amp):
            logits = torch.cat([model(part) for part in tested[:, :-1].split(16)])
            return F.cross_entropy(logits.float().flatten(0, 1), tested[:, 1:].flatten()).item()

    return Task(
        model=sizes.model,
        batches=lambda seed: batches(seed, text, sizes),
        test=loss,
        steps=sizes.steps,
        rate=sizes.rate,
        amp=sizes.amp,
        test_every=max(sizes.steps // 10, 1),
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the demonstration; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--profile", default="hot", help="of hadamard: hot (default), auto or exact")
    parser.add_argument("--steps", type=int, help="of one training")
    parser.add_argument("--seeds", type=int, default=1, help="trainings with different weights and batches (default 1)")
    parser.add_argument("--device", choices=sorted(SIZES), help="default: cuda where there is one")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or (options.steps is not None and options.steps < 1):
        parser.error("--seeds and --steps must be at least 1")
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    sizes = SIZES[device] if options.steps is None else replace(SIZES[device], steps=options.steps)
    contenders = [
        Contender("inductor", lambda model: torch.compile(model, backend="inductor")),
        Contender(
            "hadamard", lambda model: torch.compile(model, backend="hadamard", options={"profile": options.profile})
        ),
    ]
    train(contenders, task(sizes, device), options.seeds, device, Console(stderr=True))
    for contender in contenders:
        losses = ", ".join(f"{score:.3f}" for score in contender.scores)
        print(
            f"{contender.name}: {losses} nats per held-out character, {contender.step_seconds * 1e3:.1f} ms a step, "
            f"{contender.saved / 2**20:.1f} MiB saved for the backward"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
