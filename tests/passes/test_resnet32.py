"""ResNet-32 through its convolutions: it trains under HOT and HDQT, and its gradients are those of the equations."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from harness import ratio, traced
from test_convolutions import HDQT, HOT, Hdqt, Hot, columns
from torch import Tensor, nn

from hadamard_fx.plan import Role


class HotLayer(torch.autograd.Function):
    """x [L, I], w [O, I]: exact forward, HOT's gradients in float64."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        hot = Hot()
        return hot.product("g_x", gradient, weight.t(), 4), hot.product("g_w", gradient.t(), x.t(), 8, rank=8)


class HdqtLayer(torch.autograd.Function):
    """HDQT's three products in float64."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.hdqt = hdqt = Hdqt()
        (xq, sx), (wq, sw) = hdqt.rounded(x, True), hdqt.rounded(weight)
        ctx.save_for_backward(xq, sx, wq, sw)
        tiles = zip(xq.split(32, 1), wq.split(32, 1), strict=True)
        return sx * sw * sum((a @ b.t()).clamp(-127, 127) for a, b in tiles)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        xq, sx, wq, sw = ctx.saved_tensors
        g_x = ctx.hdqt.product("g_x", (gradient, wq.t()), sw)
        return g_x, ctx.hdqt.product("g_w", (gradient.t(), xq.t()), sx)


class Equations(nn.Module):
    """A convolution or linear layer, computed by ``function`` on matrices."""

    def __init__(self, layer: Any, function: Any) -> None:
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, x: Tensor) -> Tensor:
        under = x if x.dim() == 2 else columns(x, self.layer)
        y: Tensor = self.function.apply(under, self.layer.weight.flatten(1))
        if x.dim() == 4:
            extents = zip(x.shape[2:], self.layer.stride, strict=True)  # 3×3 with a padding of 1
            y = y.view(len(x), *((extent - 1) // stride + 1 for extent, stride in extents), -1).movedim(-1, 1)
        return y if self.layer.bias is None else y + self.layer.bias


def by_equations(model: nn.Module, function: Any) -> nn.Module:
    """The same parameters, in float64, under layers that compute the equations."""
    for name, child in model.named_children():
        if isinstance(child, nn.Conv2d | nn.Linear):
            setattr(model, name, Equations(child, function))
        else:
            by_equations(child, function)
    return model.double()


def step(net: nn.Module) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """Every part of the net with what it reads, and the gradient that reaches it, in an exact step."""
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], result: Tensor) -> None:
        x = inputs[0].detach()
        result.register_hook(lambda gradient: seen.append((module, x, gradient)))

    parts = [net.conv, *(block for stage in net.stages for block in stage), net.head]  # type: ignore[union-attr]
    hooks = [part.register_forward_hook(watch) for part in parts]
    F.cross_entropy(net(torch.rand(16, 3, 16, 16)), torch.randint(10, (16,))).backward()
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("system", ["hot", "hdqt"])
def test_gradients_are_those_of_the_equations(system: str, load: Any) -> None:
    """Block by block, with the operands of a real step.

    float32 may round a value near a boundary to the other side: in one element of 10⁴ at most, by one step, which is as
    large as the values are (4 bits), so that a product is off by a hundredth. Behind a block the next one would
    multiply other integers: 32 layers deep no two ways of computing 4 bits agree, and no bound says anything.
    """
    options, function = {"hot": (HOT, HotLayer), "hdqt": (HDQT, HdqtLayer)}[system]
    torch.manual_seed(0)
    net, layers, worst = load("resnet32.py").ResNet32(10), 0, 0.0
    for part, x, gradient in step(net):
        reference = by_equations(nn.Sequential(copy.deepcopy(part)), function)
        expected = pulled(reference, reference, x.double(), gradient.double())
        compiled, trace = traced(part, options)
        found = pulled(compiled, part, x, gradient)
        ratios = [ratio(f, e) for f, e in zip(found, expected, strict=True)]
        assert max(ratios) < 0.01, (part, ratios)
        worst = max(worst, *ratios)
        products = [d for d in trace.decisions if d.gemm.role is not Role.FORWARD or system == "hdqt"]
        assert all(d.rewritten for d in products)
        layers += len([d for d in trace.decisions if d.gemm.role is Role.GRAD_WEIGHT])
    print(worst)
    assert layers == 32


def pulled(run: Any, module: nn.Module, x: Tensor, gradient: Tensor) -> list[Tensor]:
    """Gradients of x and of the parameters under an incoming gradient."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    run(x).backward(gradient)
    return [x.grad, *(p.grad for p in module.parameters())]  # type: ignore[list-item]


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["hot", "hdqt"])
def test_ten_steps(profile: str, load: Any) -> None:
    torch.manual_seed(0)
    net = load("resnet32.py").ResNet32(10)
    images, labels = torch.rand(16, 3, 16, 16), torch.randint(10, (16,))
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    compiled, trace = traced(net, {"profile": profile})
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = F.cross_entropy(compiled(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    print(losses)
    assert min(losses[-3:]) < 0.8 * losses[0]
    convolutions = [d for d in trace.decisions if d.gemm.window is not None]
    assert len(convolutions) == 3 * 31 - 1  # nobody wants the gradient of the images
    assert all(d.rewritten for d in convolutions if d.gemm.role is not Role.FORWARD or profile == "hdqt")
