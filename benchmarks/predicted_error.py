"""Predicted against measured relative error of every product under every scheme, with and without a calibration.

    python benchmarks/predicted_error.py [--models digits_vit,gpt2] [--steps 40] [--device cpu|cuda] [--quick]

Each model is trained for a few steps and calibrated on some batches; its products are measured on others, too ("held
out").
``gpt2`` is the architecture of transformers with random weights, on the characters of this repository's own pages.
"""

from __future__ import annotations

import importlib
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from _common import ROOT, arguments, record
from sklearn.datasets import load_digits
from torch import Tensor, nn

from examples.vit import VisionTransformer
from hadamard_fx.calibration.calibrate import record as recorded
from hadamard_fx.cost_model.error import relative_error

Batch = tuple[Tensor, Tensor]


@dataclass
class Task:
    """A model and its batches."""

    model: nn.Module
    loss: Callable[[Any, Batch], Tensor]
    batch: Callable[[], Batch]


def digits_vit(device: str, quick: bool) -> Task:
    """The digits ViT of the examples: width 256, 2 blocks, batches of 64."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32, device=device).unsqueeze(1) / 16
    labels = torch.tensor(digits.target, device=device)
    model = VisionTransformer(8, 2, 64 if quick else 256, 2, 4, classes=10).to(device)

    def batch() -> Batch:
        index = torch.randint(0, len(images), (64,), device=device)
        return images[index], labels[index]

    return Task(model, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), batch)


def gpt2(device: str, quick: bool) -> Task:
    """GPT-2 of transformers: width 256, 4 layers, 8 sequences of 128 characters."""
    transformers = importlib.import_module("transformers")
    config = transformers.GPT2Config(
        n_embd=64 if quick else 256,
        n_layer=2 if quick else 4,
        n_head=4,
        vocab_size=256,
        n_positions=128,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
        attn_implementation="sdpa",
    )
    pages = b"".join(path.read_bytes() for path in sorted(ROOT.glob("*.md")))
    characters = torch.tensor(list(pages), device=device)
    model = transformers.GPT2LMHeadModel(config).to(device)

    def batch() -> Batch:
        start = torch.randint(0, len(characters) - 129, (8, 1), device=device)
        text = characters[start + torch.arange(129, device=device)]
        return text[:, :-1], text[:, 1:]

    def loss(model: Any, batch: Batch) -> Tensor:
        return F.cross_entropy(model(input_ids=batch[0]).logits.flatten(0, 1), batch[1].flatten())

    return Task(model, loss, batch)


MODELS: dict[str, Callable[[str, bool], Task]] = {"digits_vit": digits_vit, "gpt2": gpt2}


def train(task: Task, steps: int) -> None:
    """A few steps, so that the operands are not those of an initialisation."""
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        task.loss(task.model, task.batch()).backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def products(name: str, task: Task, count: int) -> Iterator[dict[str, Any]]:
    """One entry for each product and scheme."""
    calibration, recorder = recorded(task.model, [task.batch() for _ in range(count)], task.loss, None, None)
    fresh, _ = recorded(task.model, [task.batch() for _ in range(count)], task.loss, None, None)
    for gemm in recorder.gemms:
        product = calibration.product(gemm)
        for scheme, measured in product.measured if product else ():
            held_out = fresh.measured_error(scheme, gemm)
            if measured and held_out:
                yield {
                    "model": name,
                    "layer": gemm.layer,
                    "role": str(gemm.role),
                    "scheme": str(scheme),
                    "measured": measured,
                    "measured, held out": held_out,
                    "predicted": relative_error(scheme, gemm, calibration.statistics(gemm)),
                    "predicted, Gaussian": relative_error(scheme, gemm),
                }


def summary(title: dict[str, str], found: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians and 90th percentiles of |predicted / measured − 1|, in per cent."""

    def off(predicted: str, measured: str) -> list[float]:
        return sorted(100 * abs(entry[predicted] / entry[measured] - 1) for entry in found)

    own, held_out = off("predicted", "measured"), off("predicted", "measured, held out")
    return {
        **title,
        "entries": len(found),
        "median, %": statistics.median(own),
        "90th percentile, %": own[int(0.9 * len(own))],
        "held out: median, %": statistics.median(held_out),
        "held out: 90th percentile, %": held_out[int(0.9 * len(held_out))],
        "Gaussian: median, %": statistics.median(off("predicted, Gaussian", "measured")),
    }


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options = arguments(
        __doc__,
        argv,
        ("--models", {"default": ",".join(MODELS)}),
        ("--steps", {"type": int, "default": 40, "help": "of training in front of the calibration"}),
        ("--batches", {"type": int, "default": 3, "help": "of the calibration, and as many held out"}),
    )
    found: list[dict[str, Any]] = []
    for name in options.models.split(","):
        torch.manual_seed(0)
        task = MODELS[name](options.device, options.quick)
        train(task, 5 if options.quick else options.steps)
        found += products(name, task, options.batches)
    rows = []
    for name in dict.fromkeys(entry["model"] for entry in found):
        own = [entry for entry in found if entry["model"] == name]
        rows.append(summary({"model": name, "schemes": "all"}, own))
        families = {
            "full rank": lambda e: e["scheme"].startswith("hadamard"),
            "rank cut": lambda e: e["scheme"].startswith("rank"),
            "saturating": lambda e: "-bit sums" in e["scheme"],
        }
        for family, belongs in families.items():
            rows.append(summary({"model": name, "schemes": family}, [entry for entry in own if belongs(entry)]))
    record("predicted_error", options, rows, {"products": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
