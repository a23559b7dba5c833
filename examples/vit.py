"""A small vision transformer, plain PyTorch: nothing in it knows of hadamard-fx.

``make`` is the factory that ``hadamard-fx explain examples.vit:make`` asks for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Block", "VisionTransformer", "make"]


class Attention(nn.Module):
    """Multi-head self-attention; queries, keys and values in one product. ``causal``: tokens see none behind them."""

    def __init__(self, dim: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_causal=self.causal)
        result: Tensor = self.proj(out.transpose(1, 2).reshape(batch, tokens, dim))
        return result


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, dim: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, causal)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        result: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return result


class VisionTransformer(nn.Module):
    """Images [B, channels, image, image] → logits [B, classes]; the mean over the tokens is classified.

    Args:
        image, patch: pixels along one side.
        dim, depth, heads: width, number of blocks, attention heads.
    """

    def __init__(
        self, image: int, patch: int, dim: int, depth: int, heads: int, classes: int, channels: int = 1
    ) -> None:
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(channels * patch * patch, dim)
        self.position = nn.Parameter(torch.randn(1, (image // patch) ** 2, dim) * 0.5)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        batch, channels, height, width = images.shape
        size = self.patch
        patches = images.view(batch, channels, height // size, size, width // size, size)
        x = self.embed(patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)) + self.position
        for block in self.blocks:
            x = block(x)
        result: Tensor = self.head(self.norm(x).mean(1))
        return result


def make() -> tuple[VisionTransformer, tuple[Tensor], Callable[[Tensor], Tensor]]:
    """A model for 8×8 digits, a batch of 64 random images on the fastest device, and the loss of its result."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = VisionTransformer(image=8, patch=2, dim=256, depth=2, heads=4, classes=10).to(device)
    images = torch.rand(64, 1, 8, 8, device=device)
    labels = torch.randint(10, (64,), device=device)
    return model, (images,), lambda logits: F.cross_entropy(logits, labels)
