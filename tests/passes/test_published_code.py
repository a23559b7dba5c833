"""Profile ``hot-repo``: each difference of HOT's published code from the paper, against the formula in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import gradients, ratio, traced
from torch import Tensor, nn

import hadamard_fx
from hadamard_fx.errors import SchemeError
from hadamard_fx.kernels.walsh import walsh_reference
from hadamard_fx.plan import Role
from hadamard_fx.policy import Policy
from hadamard_fx.published_code import ClippedGradInput, ClippedGradWeight

NEAREST: dict[str, Any] = {
    "profile": "hot-repo",
    "grad_input": {"kind": "clipped_grad_input", "rounding": "nearest"},
    "grad_weight": {"kind": "clipped_grad_weight", "rounding": "nearest"},
}
"""The published numbers without a random draw."""


def rounded(v: Tensor, bits: int, sawb: bool, lines: bool = False) -> Tensor:
    """The nearest point of the grid whose end is max|v| or SAWB's clip, float64."""
    end = v.abs().amax(1, keepdim=True) if lines else v.abs().max()
    if sawb:
        end = 12.1 * v.square().mean().sqrt() - 12.2 * v.abs().mean()
    step = end / (2 ** (bits - 1) - 1)
    return (v / step).round().clamp(-(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1) * step


def blocks(order: int, extent: int, rows: Tensor | None = None) -> Tensor:
    """Orthonormal I ⊗ H, or I ⊗ the given rows, over ``extent`` points."""
    kept = walsh_reference(order) if rows is None else rows
    return torch.block_diag(*[kept / order**0.5] * (extent // order))


def triangle16() -> Tensor:
    four = walsh_reference(4)
    return torch.stack([torch.kron(four[i], four[j]) for i in range(4) for j in range(4) if i + j < 4])


class Layer(nn.Module):
    """One layer over [images, tokens, channels], behind another so that its input is no data."""

    def __init__(self, outputs: int = 48) -> None:
        super().__init__()
        self.first = nn.Linear(24, 40)
        self.fc = nn.Linear(40, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.nn.functional.gelu(self.first(x)))


def expected(module: Layer, x: Tensor, keep: Tensor, bits: int = 8, per_token: bool = False) -> tuple[Tensor, Tensor]:
    """(g_w, g_x) of ``fc`` from the equations; ``keep`` [kept, tokens] is Ĥ over all tokens."""
    wide = Layer(module.fc.out_features).double()
    wide.load_state_dict({name: p.double() for name, p in module.state_dict().items()})
    hidden = torch.nn.functional.gelu(wide.first(x.detach().double())).flatten(0, 1)
    y = wide.fc(hidden)
    g_y, weight = (2 * y / y.numel()).detach(), wide.fc.weight.detach()
    g_w = rounded(keep @ g_y, bits, sawb=False).t() @ rounded(keep @ hidden.detach(), 8, sawb=True)
    along = blocks(16, weight.shape[0])
    g_x = rounded(g_y @ along.t(), 4, sawb=False, lines=per_token) @ rounded(along @ weight, 8, sawb=True)
    return g_w, g_x


def run(tokens: int, options: dict[str, Any], **compile_arguments: Any) -> tuple[Layer, Tensor, dict[str, Tensor], Any]:
    torch.manual_seed(0)
    module, x = Layer(), torch.randn(4, tokens, 24)
    function, trace = traced(module, options, **compile_arguments)
    found = gradients(function, module, x)
    return module, x, found, trace


def order_of(trace: Any, layer: str = "fc") -> int | None:
    (decision,) = [d for d in trace.of(Role.GRAD_WEIGHT) if d.gemm.layer == layer]
    order: int | None = decision.scheme.order
    return order


@pytest.mark.parametrize(("tokens", "order"), [(48, 16), (197, 1), (12, 4), (64, 64)])
def test_blocks_lie_within_one_image(tokens: int, order: int) -> None:
    """4·197 tokens would divide by 4: the images decide, not the batch."""
    module, x, found, trace = run(tokens, NEAREST)
    assert order_of(trace) == order
    rows = {16: triangle16(), 1: torch.ones(1, 1, dtype=torch.float64)}.get(order)
    if rows is None:
        down, across = (walsh_reference(side) for side in {4: (2, 2), 64: (8, 8)}[order])
        side = len(down)
        rows = torch.stack([torch.kron(down[i], across[j]) for i in range(side) for j in range(side) if i + j < side])
    g_w, _ = expected(module, x, blocks(order, 4 * tokens, rows))
    assert ratio(found["fc.weight"], g_w) < 5e-3  # a float32 sum next to a boundary rounds to the other side


def test_gradient_of_the_input_has_a_clipped_weight_of_eight_bits() -> None:
    torch.manual_seed(0)
    module, x = nn.Linear(40, 48, bias=False), torch.randn(4, 16, 40, requires_grad=True)
    function, _ = traced(module, NEAREST)
    found = gradients(function, module, x)["input 0"].flatten(0, 1)
    y = x.detach().double().flatten(0, 1) @ module.weight.detach().double().t()
    g_y, along = 2 * y / y.numel(), blocks(16, 48)
    left = rounded(g_y @ along.t(), 4, sawb=False)
    clipped = left @ rounded(along @ module.weight.detach().double(), 8, sawb=True)
    plain = left @ rounded(along @ module.weight.detach().double(), 8, sawb=False)
    assert ratio(found, clipped) < 5e-3
    assert ratio(found, plain) > 2 * ratio(found, clipped), "SAWB is seen"


def test_no_transform_is_said() -> None:
    _, _, _, trace = run(197, {"profile": "hot-repo"})
    reasons = [d.reason for d in trace.of(Role.GRAD_WEIGHT)]
    assert all("no power of two divides the 197 tokens" in reason for reason in reasons)


def test_ten_of_sixteen_in_eight_bits_are_saved() -> None:
    _, _, _, trace = run(48, {"profile": "hot-repo"})
    outputs = trace.forward[0].graph.find_nodes(op="output")[0].all_input_nodes
    kept = {(tuple(n.meta["val"].shape), n.meta["val"].dtype) for n in outputs}
    assert ((40, 4 * 48 // 16 * 10 + 8), torch.int8) in kept, "120 columns, padded to 128"
    assert ((4 * 48, 40), torch.float32) in kept, "GELU's input, which its derivative reads"
    assert len([1 for shape, dtype in kept if shape == (4 * 48, 40) and dtype == torch.float32]) == 1


def test_two_axes_are_one_sequence_of_tokens() -> None:
    module, x = nn.Linear(24, 16), torch.randn(36, 24, requires_grad=True)
    function, trace = traced(module, {"profile": "hot-repo"})
    gradients(function, module, x)
    assert [d.scheme.order for d in trace.of(Role.GRAD_WEIGHT)] == [4]


def test_any_batch_with_one_graph_but_not_any_length() -> None:
    torch.manual_seed(0)
    module = Layer()
    function, trace = traced(module, NEAREST, dynamic=True)
    for images in (4, 6):
        x = torch.randn(images, 48, 24)
        torch._dynamo.mark_static(x, 1)
        found = gradients(function, module, x)
        g_w, _ = expected(module, x, blocks(16, images * 48, triangle16()))
        assert ratio(found["fc.weight"], g_w) < 5e-3
    assert len(trace.pipelines) == 1 and order_of(trace) == 16
    function, trace = traced(module, NEAREST, dynamic=True)
    gradients(function, module, torch.randn(4, 48, 24))
    (reason,) = {d.reason for d in trace.of(Role.GRAD_WEIGHT)}
    assert "tokens of one sequence vary" in reason


def test_autocast_keeps_the_images_apart() -> None:
    """SAWB cuts a weight of Gaussian values at 2.4 deviations, which is an error of 5 % (the error model)."""
    torch.manual_seed(0)
    module, x = Layer(), torch.randn(4, 48, 24)
    exact = gradients(module, module, x)

    def forward(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return module(x)

    fine = {"kind": "clipped_grad_weight", "rounding": "nearest", "rows": "all", "range": "minmax"}
    wide = {"kind": "clipped_grad_input", "rounding": "nearest", "bits": 8}
    function, trace = traced(forward, {**NEAREST, "grad_input": wide, "grad_weight": fine})
    found = gradients(function, module, x)
    assert [d.scheme.order for d in trace.of(Role.GRAD_WEIGHT)] == [16, 16]
    assert {d.gemm.dtype for d in trace.decisions if d.rewritten} == {"bfloat16"}
    assert max(ratio(found[name], exact[name]) for name in exact) < 0.08


def test_selection_makes_g_w_four_bits_and_chooses_the_scale_of_g_x() -> None:
    """One token's gradient is nine times the others': a scale per token more than halves the error."""

    class Uneven(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.even = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            weights = torch.where(torch.arange(16) == 3, 3.0, 1.0)[:, None]
            return self.fc(self.even(x)) * weights

    torch.manual_seed(0)
    module, x = Uneven(), torch.randn(8, 16, 32, requires_grad=True)

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().mean()

    calibration = hadamard_fx.calibrate(module, [x], loss)
    function, trace = traced(module, {"profile": "hot-repo", "calibration": calibration})
    gradients(function, module, x)
    by_role = {(d.gemm.layer, d.gemm.role): d for d in trace.decisions}
    assert by_role["fc", Role.GRAD_INPUT].scheme == ClippedGradInput(scale="token")
    weight = by_role["fc", Role.GRAD_WEIGHT]
    assert weight.scheme == ClippedGradWeight(bits=4, order=16)
    assert "selection on" in weight.reason and weight.measured_error is not None
    off, trace = traced(module, {"profile": "hot-repo"})
    gradients(off, module, x)
    assert all(d.scheme.scale == "tensor" for d in trace.of(Role.GRAD_INPUT))
    assert all(d.scheme.bits == 8 for d in trace.of(Role.GRAD_WEIGHT))


@pytest.mark.parametrize(
    ("role", "fields"),
    [
        ("grad_input", {"kind": "clipped_grad_input", "weight_bits": 9}),
        ("grad_input", {"kind": "clipped_grad_input", "range": "mse"}),
        ("grad_input", {"kind": "clipped_grad_input", "order": 1}),
        ("grad_weight", {"kind": "clipped_grad_weight", "rows": "lowest"}),
        ("grad_weight", {"kind": "clipped_grad_weight", "order": 12}),
        ("grad_weight", {"kind": "clipped_grad_input"}),
    ],
    ids=str,
)
def test_bad_fields(role: str, fields: dict[str, Any]) -> None:
    with pytest.raises(SchemeError, match="clipped"):
        Policy.resolve({role: fields}, environ={}, directory="/")
