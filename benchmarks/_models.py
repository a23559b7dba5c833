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

from examples.resnet32 import ResNet32
from examples.vit import VisionTransformer

__all__ = ["MODELS", "Workload"]


@dataclass(frozen=True)
class Workload:
    """A model and one batch; ``module(*inputs)`` is the loss."""

    module: nn.Module
    inputs: tuple[Tensor, ...]
    description: str


Factory = Callable[[int, str, torch.dtype, bool], Workload]
"""(batch or 0 for the usual one, device, dtype, quick: a tiny form for a CPU) -> the workload."""


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
        hidden = self.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        logits = self.model.lm_head(hidden).float()
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1))


def _images(
    batch: int, size: int, channels: int, classes: int, device: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    images = torch.randn(batch, channels, size, size, device=device, dtype=dtype)
    return images, torch.randint(classes, (batch,), device=device)


def _sentences(vocabulary: int, batch: int, length: int, device: str) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(vocabulary, (batch, length + 1), device=device)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def _timm(name: str, usual: int, **tiny: Any) -> Factory:
    """The factory of a model of timm.

    Args:
        usual: images of 224×224 in a batch; the quick form has two.
        tiny: settings of the quick form.
    """

    def build(batch: int, device: str, dtype: torch.dtype, quick: bool) -> Workload:
        timm = importlib.import_module("timm")
        batch = batch or (2 if quick else usual)
        module = Classifier(timm.create_model(name, pretrained=False, **(tiny if quick else {}))).to(device, dtype)
        return Workload(module, _images(batch, 224, 3, 1000, device, dtype), f"timm {name}, batch {batch}")

    return build


def vit_b(batch: int, device: str, dtype: torch.dtype, quick: bool) -> Workload:
    """The shape of ViT-B/16, twelve layers, by this repository's own transformer (needs no package)."""
    batch = batch or (2 if quick or device == "cpu" else 32)
    model = VisionTransformer(224, 16, dim=768, depth=2 if quick else 12, heads=12, classes=1000, channels=3)
    module = Classifier(model).to(device, dtype)
    return Workload(module, _images(batch, 224, 3, 1000, device, dtype), f"examples.vit, ViT-B/16, batch {batch}")


def resnet32(batch: int, device: str, dtype: torch.dtype, quick: bool) -> Workload:
    """ResNet-32 for images of 32×32, by this repository's own module (needs no package)."""
    batch = batch or (4 if quick else 32 if device == "cpu" else 512)
    module = Classifier(ResNet32(100, blocks=1 if quick else 5)).to(device, dtype)
    return Workload(module, _images(batch, 32, 3, 100, device, dtype), f"examples.resnet32, batch {batch}")


def digits(batch: int, device: str, dtype: torch.dtype, quick: bool) -> Workload:
    """The transformer of ``examples/digits_vit.py`` on a CPU, with random images."""
    batch = batch or 64
    model = VisionTransformer(8, 2, dim=256, depth=2, heads=4, classes=10)
    module = Classifier(model).to(device, dtype)
    return Workload(module, _images(batch, 8, 1, 10, device, dtype), f"examples.vit for digits, batch {batch}")


def _llama(usual: int, tokens: int) -> Factory:
    """The factory of a Llama of 1 B parameters: 16 layers, 2048, 8192, GQA 32/8, vocabulary 32000.

    Args:
        usual: sequences in a batch, of ``tokens`` each.
    """

    def build(batch: int, device: str, dtype: torch.dtype, quick: bool) -> Workload:
        transformers = importlib.import_module("transformers")
        batch, length = batch or (2 if quick else usual), 128 if quick else tokens
        config = transformers.LlamaConfig(
            hidden_size=256 if quick else 2048,
            intermediate_size=1024 if quick else 8192,
            num_hidden_layers=2 if quick else 16,
            num_attention_heads=4 if quick else 32,
            num_key_value_heads=1 if quick else 8,
            vocab_size=1000 if quick else 32000,
            max_position_embeddings=tokens,
            use_cache=False,
            attn_implementation="sdpa",
        )
        with torch.device(device):
            module = LanguageModel(transformers.LlamaForCausalLM(config)).to(dtype)
        inputs = _sentences(config.vocab_size, batch, length, device)
        return Workload(module, inputs, f"Llama, 16 layers of 2048/8192, {batch}×{length} tokens")

    return build


def gpt2_medium(batch: int, device: str, dtype: torch.dtype, quick: bool) -> Workload:
    """GPT-2 medium, 355 M parameters: 24 layers, 1024, 16 heads, sequences of 1024 tokens, no dropout."""
    transformers = importlib.import_module("transformers")
    batch, length = batch or (2 if quick else 8), 128 if quick else 1024
    config = transformers.GPT2Config(
        n_embd=256 if quick else 1024,
        n_layer=2 if quick else 24,
        n_head=4 if quick else 16,
        vocab_size=1000 if quick else 50257,
        n_positions=1024,
        bos_token_id=None,
        eos_token_id=None,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        use_cache=False,
        attn_implementation="sdpa",
    )
    with torch.device(device):
        module = LanguageModel(transformers.GPT2LMHeadModel(config)).to(dtype)
    inputs = _sentences(config.vocab_size, batch, length, device)
    return Workload(module, inputs, f"GPT-2 medium, 24 layers of 1024, {batch}×{length} tokens")


MODELS: dict[str, Factory] = {
    "vit_b16": _timm("vit_base_patch16_224", 256, depth=2, embed_dim=192, num_heads=3),
    "vit_l16": _timm("vit_large_patch16_224", 128, depth=2, embed_dim=192, num_heads=3),
    "llama_1b": _llama(8, 2048),
    "llama_1b_4k": _llama(4, 4096),
    "gpt2_medium": gpt2_medium,
    "resnet50": _timm("resnet50", 256, layers=(1, 1, 1, 1), channels=(16, 32, 64, 128)),
    "efficientformer_l7": _timm(
        "efficientformer_l7", 128, depths=(1, 1, 1, 2), embed_dims=(24, 48, 96, 192), num_vit=1
    ),
    "vit_b": vit_b,
    "resnet32": resnet32,
    "digits": digits,
}
"""All that ``--model`` knows."""
