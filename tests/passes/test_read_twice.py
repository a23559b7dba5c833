"""Memory by liveness, and one form at a time where both would raise the peak."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import torch.fx as fx
import torch.nn.functional as F
from harness import Trace, traced
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hadamard_fx import compat
from hadamard_fx.kernels.library import load
from hadamard_fx.passes.joint_graph import GraphInput, JointGraph
from hadamard_fx.passes.liveness import live_bytes, peak_bytes

aten = torch.ops.aten
GROUPED = {"profile": "hot", "grad_input": {"bits": 8, "group": 32}, "grad_weight": {"group": 64}}


class Classifier(nn.Module):
    """A cross-entropy over so many words that their gradient is the peak of the backward."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(32, 64), nn.Linear(64, words, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        classes = torch.arange(x.shape[0], device=x.device)
        return F.cross_entropy(self.head(torch.relu(self.fc(x))), classes)


def gradients(words: int, fusible: frozenset[str]) -> tuple[dict[str, torch.Tensor], Trace]:
    torch.manual_seed(0)
    module = Classifier(words)
    x = torch.randn(512, 32).requires_grad_()
    compiled, trace = traced(module, GROUPED, fusible)
    torch.manual_seed(7)
    compiled(x).backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}, trace


def calls(trace: Trace) -> list[tuple[bool, bool]]:
    """For each call of quantize_both in the backward, in order: whether it makes rows, and tokens."""
    op = load()["quantize_both"].op
    return [(bool(n.args[3]), bool(n.args[7])) for n in trace.backward[0].graph.nodes if n.target is op]


def test_the_gradient_of_many_logits_is_read_twice_and_the_larger_form_goes_first() -> None:
    apart, _ = gradients(4000, frozenset())
    fused, trace = gradients(4000, frozenset({"cpu"}))
    assert calls(trace)[:2] == [(True, False), (False, True)]
    assert torch.equal(apart["head.weight"], fused["head.weight"])
    assert torch.equal(apart["fc.weight"], fused["fc.weight"])
    (fact,) = (f for p in trace.pipelines for f in p.fusions if f.layer == "head" and f.tensor == "g_y")
    assert "peak of memory" in fact.reason
    nodes = list(trace.backward[0].graph.nodes)
    products = [n for n in nodes if "quantized_mm" in str(n.target)]
    second = [n for n in nodes if n.target is load()["quantize_both"].op][1]
    assert products[0] < second, "the product of the first form is done before the second form is made"


def test_splitting_lowers_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    _, split = gradients(4000, frozenset({"cpu"}))
    monkeypatch.setattr("hadamard_fx.passes.read_twice.WORTHWHILE", 1.0)
    _, whole = gradients(4000, frozenset({"cpu"}))
    assert calls(whole)[0] == (True, True)
    inputs = whole.pipelines[0].inputs
    peaks = [peak_bytes(JointGraph(t.backward[0].graph, inputs)) for t in (split, whole)]
    tokens_form = 512 // 2 * 4000
    assert peaks[1] - peaks[0] >= tokens_form // 2


def test_a_graph_whose_split_gains_nothing_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hadamard_fx.passes.read_twice.WORTHWHILE", 1.0)
    _, kept = gradients(4000, frozenset({"cpu"}))
    monkeypatch.setattr("hadamard_fx.passes.manager.ReadTwice.rewrite", lambda self, joint: ())
    _, untouched = gradients(4000, frozenset({"cpu"}))
    names = [[n.name for n in t.backward[0].graph.nodes] for t in (kept, untouched)]
    targets = [[str(n.target) for n in t.backward[0].graph.nodes] for t in (kept, untouched)]
    assert targets[0] == targets[1]
    assert len(names[0]) == len(names[1])


def chain(mode: FakeTensorMode) -> tuple[fx.Graph, dict[str, fx.Node]]:
    """x [100, 100] -> mm with w -> relu -> mm with w -> sum, float32: 40 kB a tensor."""
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {"x": graph.placeholder("x"), "w": graph.placeholder("w")}
    with mode:
        for position, name in enumerate(("x", "w")):
            nodes[name].meta["val"] = torch.empty(100, 100)
            nodes[name].meta["desc"] = compat.PlainAOTInput(position)
        steps: Any = [
            ("first", aten.mm.default, ("x", "w")),
            ("turned", aten.permute.default, ("first", [1, 0])),
            ("relu", aten.relu.default, ("turned",)),
            ("twice", aten.mul.Tensor, ("relu", 2.0)),
            ("second", aten.mm.default, ("twice", "w")),
            ("total", aten.sum.default, ("second",)),
        ]
        for name, target, arguments in steps:
            given = tuple(nodes[a] if isinstance(a, str) else a for a in arguments)
            nodes[name] = graph.call_function(target, given)
            nodes[name].meta["val"] = target(*fx.map_arg(given, lambda n: n.meta["val"]))
    nodes["out"] = graph.output((nodes["total"],))
    return graph, nodes


def test_live_bytes_of_a_chain() -> None:
    graph, nodes = chain(FakeTensorMode())
    live = live_bytes(JointGraph(graph, (GraphInput("", False, False), GraphInput("w", True, True))))
    tile = 100 * 100 * 4
    assert live[nodes["first"]] == 2 * tile, "x and the product; the weight does not count"
    assert live[nodes["relu"]] == tile, "computed where it is read: only the product lies there"
    assert live[nodes["twice"]] == 2 * tile, "the end of the generated kernel, read by a product"
    assert live[nodes["second"]] == 2 * tile
    assert live[nodes["total"]] == tile + 4
    assert live[nodes["out"]] == 4


def test_a_slice_is_a_view_of_what_it_is_cut_from() -> None:
    graph, mode = fx.Graph(), FakeTensorMode()
    x = graph.placeholder("x")
    relu = graph.call_function(aten.relu.default, (x,))
    top = graph.call_function(aten.slice.Tensor, (relu, 0, 0, 50))
    rest = graph.call_function(aten.slice.Tensor, (relu, 0, 50, 100))
    products = [graph.call_function(aten.mm.default, (part, x)) for part in (top, rest)]
    graph.output(tuple(products))
    with mode:
        x.meta["val"] = relu.meta["val"] = torch.empty(100, 100)
        top.meta["val"] = rest.meta["val"] = products[0].meta["val"] = products[1].meta["val"] = torch.empty(50, 100)
    live = live_bytes(JointGraph(graph, ()))
    tile = 100 * 100 * 4
    assert live[relu] == 2 * tile, "x, and relu for the products"
    assert live[rest] == 2 * tile, "slices take nothing"
    assert live[products[1]] == 3 * tile, "x, relu and both halves"


def test_liveness_of_a_long_chain_takes_no_square_of_its_length() -> None:
    def seconds(length: int) -> float:
        graph, mode = fx.Graph(), FakeTensorMode()
        node = graph.placeholder("x")
        with mode:
            tile, one = torch.empty(10, 10), torch.empty(())
        node.meta["val"], sums = tile, []
        for _ in range(length):
            node = graph.call_function(aten.relu.default, (node,))
            sums.append(graph.call_function(aten.sum.default, (node,)))
            node.meta["val"], sums[-1].meta["val"] = tile, one
        graph.output((node, *sums))
        begin = time.perf_counter()
        live_bytes(JointGraph(graph, ()))
        return time.perf_counter() - begin

    seconds(100)
    assert seconds(4000) < 16 * seconds(1000) + 0.05, "4 times as long; its square would be 16 times"
    assert seconds(2000) < 5
