"""ResNet-32 for 32×32 images (He et al. 2015, section 4.2): three stages of five blocks, 16, 32 and 64 channels wide.

``make`` is the factory that ``hadamard-fx explain examples.resnet32:make`` asks for. HDQT's class-incremental learning
on CIFAR-100 uses this net (arXiv 2310.03675).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Block", "ResNet32", "make"]


class Block(nn.Module):
    """relu(x + bn(conv(relu(bn(conv(x))))); a stride of 2 halves the image.

    Where the shapes differ, the shortcut takes every second pixel and pads the new channels with zeros: it has no
    parameters (option A of the paper).
    """

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.stride, self.added = stride, channels - inputs
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride > 1 or self.added:
            before = self.added // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.added - before))
        return torch.relu(x + y)


def _stage(inputs: int, channels: int, blocks: int) -> nn.Sequential:
    """Blocks of one width; the first one halves the image where the width grows."""
    first = Block(inputs, channels, stride=1 if inputs == channels else 2)
    return nn.Sequential(first, *(Block(channels, channels, stride=1) for _ in range(blocks - 1)))


class ResNet32(nn.Module):
    """Images [B, channels, height, width] → scores [B, classes].

    Args:
        blocks: of each stage; 5 make 32 layers (6·5 + 2), 3 make ResNet-20.
    """

    def __init__(self, classes: int = 100, channels: int = 3, blocks: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.stages = nn.Sequential(_stage(16, 16, blocks), _stage(16, 32, blocks), _stage(32, 64, blocks))
        self.head = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, x: Tensor) -> Tensor:
        """[B, 64], what the head reads: the mean over the pixels."""
        result: Tensor = self.stages(torch.relu(self.bn(self.conv(x)))).mean((2, 3))
        return result

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.features(x))
        return scores


def make() -> tuple[ResNet32, tuple[Tensor], Callable[[Tensor], Tensor]]:
    """The net, a batch of 32 random images on the fastest device, and the loss of its result."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    model = ResNet32().to(device)
    labels = torch.randint(100, (32,), device=device)
    return model, (torch.rand(32, 3, 32, 32, device=device),), lambda scores: F.cross_entropy(scores, labels)
