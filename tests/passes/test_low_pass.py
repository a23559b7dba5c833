"""LBP-WHT as a scheme: its projection against Kronecker products of Sylvester's matrices, and what it keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import gradients, traced
from torch import nn

from hadamard_fx.errors import SchemeError
from hadamard_fx.kernels.walsh import walsh_reference
from hadamard_fx.low_pass import LowPass
from hadamard_fx.passes.schemes.low_pass import coefficients, image
from hadamard_fx.plan import Role

GRIDS = [(8, 8, 0, 4), (8, 8, 1, 1), (14, 14, 1, 4), (5, 11, 2, 15), (1, 1, 0, 3), (16, 8, 0, 6)]


def projection(scheme: LowPass) -> torch.Tensor:
    """B of one image [coefficients, tokens] in float64, one row after the other."""
    order, rows = scheme.order, walsh_reference(scheme.order)
    lines = [torch.eye(scheme.tokens, dtype=torch.float64)[token] for token in range(scheme.prefix)]
    for top in range(0, scheme.height, order):
        for left in range(0, scheme.width, order):
            for i in range(order):
                for j in range(order):
                    if i + j < scheme.kept:
                        line = torch.zeros(scheme.tokens, dtype=torch.float64)
                        for r in range(min(order, scheme.height - top)):
                            for c in range(min(order, scheme.width - left)):
                                token = scheme.prefix + (top + r) * scheme.width + left + c
                                line[token] = rows[i, r] * rows[j, c] / order
                        lines.append(line)
    return torch.stack(lines)


@pytest.mark.parametrize("grid", GRIDS)
def test_projection_and_its_transpose(grid: tuple[int, int, int, int]) -> None:
    height, width, prefix, kept = grid
    scheme = LowPass(height, width, prefix, kept=kept)
    x = torch.randn(3 * scheme.tokens, 6)
    matrix = torch.block_diag(*[projection(scheme)] * 3)
    assert matrix.shape == (3 * scheme.coefficients, 3 * scheme.tokens)
    low = coefficients(x, scheme)
    torch.testing.assert_close(low.double(), matrix @ x.double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(image(low, scheme).double(), matrix.t() @ low.double(), rtol=1e-5, atol=1e-6)


def test_all_functions_on_whole_tiles_are_the_identity() -> None:
    scheme = LowPass(16, 8, 3, kept=15)
    x = torch.randn(2 * scheme.tokens, 5)
    assert scheme.coefficients == scheme.tokens
    torch.testing.assert_close(image(coefficients(x, scheme), scheme), x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(24, 40), nn.Linear(40, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.tanh(self.fc1(x)))


def run(scheme: LowPass, **kwargs: Any) -> tuple[Net, torch.Tensor, dict[str, torch.Tensor], Any]:
    torch.manual_seed(0)
    module, x = Net(), torch.randn(3, scheme.tokens, 24, requires_grad=True)
    options = {"profile": "exact", "grad_input": scheme, "grad_weight": scheme}
    function, trace = traced(module, options, **kwargs)
    return module, x, gradients(function, module, x), trace


def test_gradients_are_the_formula_in_float64() -> None:
    scheme = LowPass(14, 14, 1)
    module, x, found, trace = run(scheme)
    assert all(d.rewritten for d in trace.decisions if d.gemm.role is not Role.FORWARD)
    wide, tokens = Net().double(), x.detach().double()
    wide.load_state_dict({name: p.double() for name, p in module.state_dict().items()})
    matrix = torch.block_diag(*[projection(scheme)] * 3)
    hidden = torch.tanh(wide.fc1(tokens.flatten(0, 1)))
    y = wide.fc2(hidden)
    g_y = 2 * y / y.numel()  # the harness takes the mean of the squares
    low = matrix @ g_y
    torch.testing.assert_close(found["fc2.weight"].double(), low.t() @ (matrix @ hidden), rtol=1e-4, atol=1e-7)
    g_hidden = matrix.t() @ (low @ wide.fc2.weight) * (1 - hidden**2)
    low = matrix @ g_hidden
    torch.testing.assert_close(
        found["fc1.weight"].double(), low.t() @ (matrix @ tokens.flatten(0, 1)), rtol=1e-4, atol=1e-7
    )
    torch.testing.assert_close(found["fc1.bias"].double(), g_hidden.sum(0), rtol=1e-4, atol=1e-7)


def test_the_projection_is_all_that_is_saved() -> None:
    scheme = LowPass(16, 16, 0, kept=2)
    _, _, _, trace = run(scheme)
    kept = {tuple(n.meta["val"].shape) for n in trace.forward[0].graph.find_nodes(op="output")[0].all_input_nodes}
    assert (3 * scheme.coefficients, 24) in kept, "B x"
    assert (3 * scheme.tokens, 24) not in kept, "not x"
    # tanh keeps its result for its derivative, as without the scheme: B of it is made in the backward
    assert (3 * scheme.coefficients, 40) not in kept


def test_gradients_share_one_projection() -> None:
    _, _, _, trace = run(LowPass(8, 8, 1))
    graph = trace.backward[0].graph
    transforms = [n for n in graph.nodes if n.target in (torch.ops.aten.bmm.default, torch.ops.aten.mm.default)]
    projections = [n for n in transforms if n.meta["val"].shape[-2:] in ((10, 8), (10, 40))]
    assert len(projections) == 3, "of both g_y, and of tanh's result: g_x and g_w read the same"


@pytest.mark.parametrize(
    ("scheme", "words"), [(LowPass(), "grid of the tokens is not known"), (LowPass(7, 9, 1), "no images of 64")]
)
def test_tokens_that_are_no_images_stay_exact(scheme: LowPass, words: str) -> None:
    torch.manual_seed(0)
    module = Net()
    function, trace = traced(module, {"profile": "exact", "grad_input": scheme, "grad_weight": scheme})
    gradients(function, module, torch.randn(3, 50, 24, requires_grad=True))
    reasons = [d.reason for d in trace.decisions if d.gemm.role is not Role.FORWARD]
    assert reasons and all(words in reason for reason in reasons)
    assert not any(d.rewritten for d in trace.decisions)


@pytest.mark.parametrize("fields", [{"order": 3}, {"order": 32}, {"kept": 0}, {"kept": 16}, {"height": -1}])
def test_bad_parameters(fields: dict[str, int]) -> None:
    with pytest.raises(SchemeError, match="low_pass"):
        LowPass(**fields)
