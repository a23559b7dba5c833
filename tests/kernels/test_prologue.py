"""Prologues: evaluation against eager PyTorch and Inductor, the text form, and the Triton statements (interpreted)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hadamard_fx.kernels.prologue import OPS, Prologue, Step

L, C = 24, 20
FLOAT_OPS = [name for name, op in OPS.items() if name not in ("and", "or", "not", "where", "bool", "float")]

GELU_BACKWARD = Prologue(
    ("tile", "tile"),
    (
        Step("mul", ("x1", 0.7071067811865476)),
        Step("erf", ("s0",)),
        Step("add", ("s1", 1)),
        Step("mul", ("s2", 0.5)),
        Step("mul", ("x1", "x1")),
        Step("mul", ("s4", -0.5)),
        Step("exp", ("s5",)),
        Step("mul", ("s6", 0.3989422804014327)),
        Step("mul", ("x1", "s7")),
        Step("add", ("s3", "s8")),
        Step("mul", ("x0", "s9")),
    ),
    "s10",
)
KINDS = Prologue(
    ("tile", "row", "column", "scalar", "tile"),
    (
        Step("sub", ("x0", "x1")),
        Step("mul", ("s0", "x2")),
        Step("add", ("s1", "x3")),
        Step("not", ("x4",)),
        Step("where", ("s3", "s2", 0)),
        Step("float", ("x4",)),
        Step("sub", (1, "s5")),
        Step("add", ("s4", "s6")),
    ),
    "s7",
)


def single(name: str) -> Prologue:
    """One operation between numbers, as a number."""
    operands = tuple(f"x{index}" for index in range(OPS[name].arity))
    steps = [Step(name, operands)]
    if OPS[name].truth:
        steps.append(Step("float", ("s0",)))
    return Prologue(("tile",) * len(operands), tuple(steps), f"s{len(steps) - 1}")


def inputs_of(prologue: Prologue, dtype: torch.dtype = torch.bfloat16) -> list[torch.Tensor]:
    """Positive numbers, so that every operation is defined; the last input of ``KINDS`` is a mask."""
    generator = torch.Generator().manual_seed(len(prologue.steps))
    shapes = {"tile": (L, C), "row": (L, 1), "column": (1, C), "scalar": ()}
    made = [torch.rand(shapes[kind], generator=generator).add(0.01).to(dtype) for kind in prologue.inputs]
    if prologue == KINDS:
        made[-1] = made[-1] > 0.5
    return made


CASES = [GELU_BACKWARD, KINDS, Prologue.identity(), *map(single, FLOAT_OPS)]


def test_evaluation_is_what_eager_float32_gives() -> None:
    g, x = torch.randn(L, C).bfloat16(), torch.randn(L, C).bfloat16()
    expected = torch.ops.aten.gelu_backward(g.float(), x.float())
    found = GELU_BACKWARD.evaluate((g, x), torch.float32)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(GELU_BACKWARD.evaluate((g, x), torch.bfloat16), found.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_evaluation_is_what_inductor_computes(dtype: torch.dtype) -> None:
    """Its vectorised erf and exp may differ in the last bits, and hence a few bfloat16 by one step."""

    def chain(g: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return g * (1 - torch.tanh(x) * torch.tanh(x)) * torch.sigmoid(x).to(dtype)

    steps = (Step("tanh", ("x1",)), Step("mul", ("s0", "s0")), Step("sub", (1, "s1")), Step("mul", ("x0", "s2")))
    prologue = Prologue(("tile", "tile"), (*steps, Step("sigmoid", ("x1",)), Step("mul", ("s3", "s4"))), "s5")
    g, x = torch.randn(L, C).to(dtype), torch.randn(L, C).to(dtype)
    found, expected = prologue.evaluate((g, x), dtype), torch.compile(chain)(g, x)
    torch.testing.assert_close(found, expected, rtol=2e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


def test_kinds_broadcast_and_masks_stay_masks() -> None:
    tile, row, column, scalar, mask = inputs_of(KINDS)
    expected = torch.where(mask, 0.0, (tile.float() - row.float()) * column.float() + scalar.float())
    assert torch.equal(KINDS.evaluate((tile, row, column, scalar, mask), torch.float32), expected + (~mask).float())


def test_identity_is_a_tensor_of_its_own() -> None:
    x = torch.randn(L, C)
    found = Prologue.identity().evaluate((x,), torch.float32)
    assert torch.equal(found, x)
    assert found.data_ptr() != x.data_ptr()
    assert Prologue.identity().operations == 0


@pytest.mark.parametrize("prologue", CASES, ids=lambda p: "-".join(step.op for step in p.steps[:2]) or "identity")
def test_text_comes_back(prologue: Prologue) -> None:
    text = prologue.to_text()
    assert Prologue.from_text(text) == prologue
    assert Prologue.from_text(text).to_text() == text
    prologue.evaluate(inputs_of(prologue), torch.float32)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_chain_has_one_text(data: st.DataObject) -> None:
    steps: list[Step] = []
    for index in range(data.draw(st.integers(1, 8))):
        op = data.draw(st.sampled_from(["add", "sub", "mul", "neg", "abs", "maximum"]))
        earlier = st.sampled_from(["x0", "x1", *(f"s{i}" for i in range(index))])
        constant = st.integers(-3, 3) | st.floats(allow_nan=False, width=32)
        first = data.draw(earlier)
        steps.append(Step(op, (first, data.draw(earlier | constant))[: OPS[op].arity]))
    prologue = Prologue(("tile", "row"), tuple(steps), f"s{len(steps) - 1}")
    assert Prologue.from_text(prologue.to_text()) == prologue
    found = prologue.evaluate((torch.ones(3, 4), torch.ones(3, 1)), torch.float32)
    assert found.shape == (3, 4)


@pytest.mark.parametrize(
    "broken",
    [
        '[["tile"],[["gamma","x0"]],"s0"]',
        '[["tile"],[["add","x0"]],"s0"]',
        '[["tile"],[["neg","x1"]],"s0"]',
        '[["tile"],[["neg",1.0]],"s0"]',
        '[["row"],[],"x0"]',
        '[["tile"],[],"s0"]',
        "not JSON",
        "3",
    ],
)
def test_what_is_no_prologue_is_refused(broken: str) -> None:
    with pytest.raises(ValueError, match="no prologue"):
        Prologue.from_text(broken)


def test_inputs_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="input 1 is a tile"):
        GELU_BACKWARD.evaluate((torch.ones(3, 4), torch.ones(3, 1)), torch.float32)
    with pytest.raises(ValueError, match="1 inputs for a prologue of 2"):
        GELU_BACKWARD.evaluate((torch.ones(3, 4),), torch.float32)


def kernel_source(name: str, prologue: Prologue) -> str:
    """A Triton kernel that evaluates a prologue on one tile [32, 32]."""
    names = [f"v{index}" for index in range(len(prologue.inputs))]
    pointers = ", ".join(f"p{index}" for index in range(len(names)))
    where = {"tile": "r * C + c", "row": "r", "column": "c", "scalar": "r * 0 + c * 0"}
    lines = ["@triton.jit", f"def {name}({pointers}, out, L, C):"]
    lines += ["    r = tl.arange(0, 32)[:, None]", "    c = tl.arange(0, 32)[None, :]"]
    for index, kind in enumerate(prologue.inputs):
        mask = {"tile": "(r < L) & (c < C)", "row": "r < L", "column": "c < C", "scalar": "(r < L) & (c < C)"}[kind]
        lines.append(f"    v{index} = tl.load(p{index} + {where[kind]}, mask={mask})")
        lines.append(f"    if v{index}.dtype != tl.int1:\n        v{index} = v{index}.to(tl.float32)")
    lines += ["    " + line for line in prologue.triton_body(names).splitlines()]
    lines.append("    tl.store(out + r * C + c, y, mask=(r < L) & (c < C))")
    return "\n".join(lines)


def interpret() -> list[str]:
    """What differs between the Triton statements and ``evaluate``: run by the test below in a process of its own."""
    sources = ["import triton", "import triton.language as tl"]
    sources += [kernel_source(f"kernel{index}", prologue) for index, prologue in enumerate(CASES)]
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "generated_kernels.py"
        path.write_text("\n\n\n".join(sources), encoding="utf-8")
        spec = importlib.util.spec_from_file_location("generated_kernels", path)
        assert spec is not None and spec.loader is not None
        module: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for index, prologue in enumerate(CASES):
            for sign in (1, -1):
                inputs = [x if x.dtype is torch.bool else x * sign for x in inputs_of(prologue)]
                out = torch.empty(L, C)
                getattr(module, f"kernel{index}")[(1,)](*inputs, out, L, C)
                expected = prologue.evaluate(inputs, torch.float32)
                if not torch.allclose(out, expected, rtol=1e-5, atol=1e-6, equal_nan=True):
                    worst = (out - expected).abs().max()
                    problems.append(f"{[step.op for step in prologue.steps]}: {worst} off\n{module}")
    return problems


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_triton_statements_compute_the_same() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


if __name__ == "__main__":
    found = interpret()
    print("\n".join(found))
    sys.exit(bool(found))
