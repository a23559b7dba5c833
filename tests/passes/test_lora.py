"""Adapters on a frozen base: no gradient of a frozen weight, nothing of its input kept, and right gradients."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import FINE, gradients, ratio, traced
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.lora import ADAPTERS_PRICED, Adapter, adapt
from examples.vit import Block, VisionTransformer
from hadamard_fx.passes.find_gemms import operands
from hadamard_fx.passes.joint_graph import module_of, strip_views
from hadamard_fx.plan import Role

aten = torch.ops.aten


def adapted(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = adapt(nn.Sequential(Block(32, 4), Block(32, 4)), rank=4)
    for module in model.modules():
        if isinstance(module, Adapter):
            nn.init.normal_(module.up.weight, std=0.1)  # it starts at zero, where the other factor has no gradient
    return model


def saved(trace: Any) -> set[torch.fx.Node]:
    """What the forward keeps, below views; its own result left out."""
    outputs = trace.forward[0].graph.find_nodes(op="output")[0].args[0][1:]
    return {strip_views(node) for node in outputs if isinstance(node, torch.fx.Node)}


def inputs_of(trace: Any) -> dict[str, torch.fx.Node]:
    """Layer -> x, below views, in the forward graph."""
    found = {}
    for node in trace.forward[0].graph.nodes:
        if node.target in (aten.mm.default, aten.addmm.default):
            found[module_of(node)] = strip_views(operands(node)[0])
    return found


FROZEN = [
    f"{block}.{layer}" for block in (0, 1) for layer in ("fc1", "fc2", "attention.qkv.base", "attention.proj.base")
]


@pytest.mark.parametrize("profile", ["hot", "hot-repo", "exact"])
def test_frozen_layers_have_no_gradient_of_their_weight(profile: str) -> None:
    model = adapted()
    function, trace = traced(model, {"profile": profile})
    gradients(function, model, torch.randn(4, 16, 32))
    for layer in FROZEN:
        expected = {Role.FORWARD, Role.GRAD_INPUT}
        # Nothing in front of the first adapter is trained: its input needs no gradient.
        assert set(trace.roles(layer)) == ({Role.FORWARD} if layer == "0.attention.qkv.base" else expected), layer
    frozen = [d for d in trace.decisions if d.gemm.layer in FROZEN]
    assert all(d.gemm.frozen for d in frozen)
    assert profile == "exact" or all(d.rewritten for d in frozen if d.gemm.role is Role.GRAD_INPUT)
    adapters = {d.gemm.layer for d in trace.of(Role.GRAD_WEIGHT)}
    assert adapters == {f"{b}.attention.{n}.{s}" for b in (0, 1) for n in ("qkv", "proj") for s in ("down", "up")}


def test_nothing_of_a_frozen_layers_input_is_kept() -> None:
    model = adapted()
    function, trace = traced(model, {"profile": "hot"})
    gradients(function, model, torch.randn(4, 16, 32))
    kept, inputs = saved(trace), inputs_of(trace)
    compressed = [node for node in kept if "compress_tokens" in str(strip_getitem(node).target)]
    sources = {strip_views(strip_getitem(node).args[0]) for node in compressed}
    for layer in ("0.fc1", "0.fc2", "1.fc1", "1.fc2"):
        assert inputs[layer] not in kept and inputs[layer] not in sources, layer
    # An adapter on the same input needs it: compressed, and not as it is.
    assert inputs["1.attention.qkv.base"] is inputs["1.attention.qkv.down"]
    assert inputs["1.attention.qkv.down"] in sources and inputs["1.attention.qkv.down"] not in kept


def strip_getitem(node: torch.fx.Node) -> torch.fx.Node:
    return node.all_input_nodes[0] if "getitem" in str(node.target) else node


def test_the_same_model_trained_as_a_whole_keeps_more() -> None:
    """The first test would pass if no input were ever kept: trained layers keep theirs."""
    torch.manual_seed(0)
    model = nn.Sequential(Block(32, 4), Block(32, 4))
    function, trace = traced(model, {"profile": "hot"})
    gradients(function, model, torch.randn(4, 16, 32))
    compressed = {strip_getitem(node) for node in saved(trace) if "compress_tokens" in str(strip_getitem(node).target)}
    sources = {strip_views(node.args[0]) for node in compressed}
    inputs = inputs_of(trace)
    assert {inputs[layer] for layer in ("0.fc1", "0.fc2", "1.fc1", "1.fc2")} <= sources


def test_gradients_of_the_adapters() -> None:
    model, x = adapted(), torch.randn(4, 16, 32)
    exact = gradients(model, model, x)
    function, _ = traced(model, FINE)
    found = gradients(function, model, x)
    assert set(found) == set(exact) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(".down." in name or ".up." in name for name in found)
    assert max(ratio(found[name], exact[name]) for name in exact) < 0.05


def test_small_adapters_stay_exact_where_prices_decide() -> None:
    model = adapted()
    function, trace = traced(model, {"profile": "hot", "overrides": ADAPTERS_PRICED})
    gradients(function, model, torch.randn(4, 16, 32))
    adapters = [
        d for d in trace.decisions if d.gemm.layer.endswith((".down", ".up")) and d.gemm.role is not Role.FORWARD
    ]
    assert adapters and not any(d.rewritten for d in adapters)
    assert all("no gain predicted" in d.reason for d in adapters)


def test_an_adapter_starts_as_its_base() -> None:
    torch.manual_seed(0)
    base, x = nn.Linear(6, 5), torch.randn(3, 6)
    adapter = Adapter(base, rank=2)
    assert torch.equal(adapter(x), base(x))
    nn.init.ones_(adapter.up.weight)
    expected = base(x) + 2 * (x @ adapter.down.weight.t()).sum(1, keepdim=True)
    torch.testing.assert_close(adapter(x), expected)
    assert [name for name, p in adapter.named_parameters() if p.requires_grad] == ["down.weight", "up.weight"]


def test_wrong_names_and_ranks() -> None:
    model = VisionTransformer(8, 4, 16, 1, 2, classes=3)
    with pytest.raises(ValueError, match=r"matches 'qkv'; there are: embed, blocks\.0\.attention\.qkv"):
        adapt(model, rank=2, layers="qkv")
    with pytest.raises(ValueError, match="at least 1"):
        adapt(model, rank=0)


def test_the_example_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if "hadamard" not in torch._dynamo.list_backends():
        pytest.skip("needs the installed package: torch finds the backend by its entry point")
    from examples import lora

    monkeypatch.setitem(lora.SIZES, "cpu", replace(lora.SIZES["cpu"], dim=32, depth=1, heads=2, epochs=1))
    assert lora.main(["--rank", "2", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{kind}, {name}" in printed for kind in ("all", "adapters") for name in ("inductor", "hot"))
