"""The models of the training benchmarks, each as one module whose forward returns the loss.

timm and transformers are imported only where their model is asked for; weights are random.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.vit import VisionTransformer

__all__ = ["MODELS", "Workload"]


@dataclass(frozen=True)
class Workload:
    """A model and one batch; ``module(*inputs)`` is the loss."""

    module: nn.Module
    inputs: tuple[Tensor, ...]
    description: str


class Classifier(nn.Module):
    """Cross entropy, in float32, of a model of images."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.model(images).float(), labels)


class LanguageModel(nn.Module):
    """Cross entropy, in float32, of the next token under a causal language model of transformers."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        hidden = self.model.model(input_ids=tokens, use_cache=False).last_hidden_state
        logits = self.model.lm_head(hidden).float()
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1))


def _images(
    batch: int, size: int, channels: int, classes: int, device: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    images = torch.randn(batch, channels, size, size, device=device, dtype=dtype)
    return images, torch.randint(classes, (batch,), device=device)


def vit_b16(batch: int, device: str, dtype: torch.dtype, quick: bool) -> Workload:
    """timm's vit_base_patch16_224, 86 M parameters, 197 tokens an image."""
    timm = importlib.import_module("timm")

    batch = batch or (8 if quick else 256)
    model = timm.create_model("vit_base_patch16_224", pretrained=False, **({"depth": 2} if quick else {}))
    module = Classifier(model).to(device, dtype)
    return Workload(module, _images(batch, 224, 3, 1000, device, dtype), f"timm vit_base_patch16_224, batch {batch}")


def vit_b(batch: int, device: str, dtype: torch.dtype, quick: bool) -> Workload:
    """The shape of ViT-B/16, twelve layers, by this repository's own transformer (needs no package)."""
    batch = batch or (2 if quick or device == "cpu" else 32)
    model = VisionTransformer(224, 16, dim=768, depth=2 if quick else 12, heads=12, classes=1000, channels=3)
    module = Classifier(model).to(device, dtype)
    return Workload(module, _images(batch, 224, 3, 1000, device, dtype), f"examples.vit, ViT-B/16, batch {batch}")


def digits(batch: int, device: str, dtype: torch.dtype, quick: bool) -> Workload:
    """The transformer of ``examples/digits_vit.py`` on a CPU, with random images."""
    batch = batch or 64
    model = VisionTransformer(8, 2, dim=256, depth=2, heads=4, classes=10)
    module = Classifier(model).to(device, dtype)
    return Workload(module, _images(batch, 8, 1, 10, device, dtype), f"examples.vit for digits, batch {batch}")


def llama_1b(batch: int, device: str, dtype: torch.dtype, quick: bool) -> Workload:
    """A Llama of 1 B parameters: 16 layers, 2048, 8192, GQA 32/8, vocabulary 32000, sequences of 2048 tokens."""
    transformers = importlib.import_module("transformers")
    batch, length = batch or (2 if quick else 8), 128 if quick else 2048
    config = transformers.LlamaConfig(
        hidden_size=256 if quick else 2048,
        intermediate_size=1024 if quick else 8192,
        num_hidden_layers=2 if quick else 16,
        num_attention_heads=4 if quick else 32,
        num_key_value_heads=1 if quick else 8,
        vocab_size=32000,
        max_position_embeddings=2048,
        use_cache=False,
        attn_implementation="sdpa",
    )
    with torch.device(device):
        module = LanguageModel(transformers.LlamaForCausalLM(config)).to(dtype)
    tokens = torch.randint(config.vocab_size, (batch, length + 1), device=device)
    inputs = (tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    return Workload(module, inputs, f"Llama, 16 layers of 2048/8192, {batch}×{length} tokens")


MODELS: dict[str, Callable[[int, str, torch.dtype, bool], Workload]] = {
    "vit_b16": vit_b16,
    "llama_1b": llama_1b,
    "vit_b": vit_b,
    "digits": digits,
}
"""Name -> factory of (batch or 0 for the usual one, device, dtype, quick)."""
