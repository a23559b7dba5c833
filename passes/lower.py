"""Lower ``hadamard::*`` ops after partitioning: on a CPU they become the aten code that Inductor fuses and vectorises.

On CUDA they stay opaque calls of the Triton kernels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.fx as fx

from hadamard_fx import compat
from hadamard_fx.kernels.library import Kernel, load


@dataclass(frozen=True)
class LowerToAten:
    """Replace every ``hadamard::*`` call on CPU tensors by its kernel's functional PyTorch form."""

    name: ClassVar[str] = "lower-to-aten"
    traces: dict[Any, fx.GraphModule] = field(default_factory=dict, repr=False, compare=False)

    def lower(self, graph: fx.Graph) -> None:
        """Edit the graph in place; equal calls are traced once."""
        kernels = {kernel.op: kernel for kernel in load().values()}
        for node in list(graph.nodes):
            if node.target in kernels and self._inlinable(node):
                self._inline(graph, node, kernels[node.target])
        graph.eliminate_dead_code()
        graph.lint()

    def _inlinable(self, node: fx.Node) -> bool:
        tensors = [operand.meta["val"] for operand in node.all_input_nodes]
        grouped = node.target is load()["quantized_mm"].op and node.args[4] != 0
        empty = any(isinstance(extent, int) and extent == 0 for tensor in tensors for extent in tensor.shape)
        return all(tensor.device.type == "cpu" for tensor in tensors) and not grouped and not empty

    def _inline(self, graph: fx.Graph, node: fx.Node, kernel: Kernel) -> None:
        operands = list(node.all_input_nodes)
        traced = self._trace(node, kernel, operands)
        with graph.inserting_before(node):
            copies: dict[fx.Node, Any] = {}
            inputs = iter(operands)
            for inner in traced.graph.nodes:
                if inner.op == "placeholder":
                    copies[inner] = next(inputs)
                elif inner.op == "output":
                    _replace(node, fx.map_arg(inner.args[0], lambda n: copies[n]))
                else:
                    copies[inner] = graph.node_copy(inner, lambda n: copies[n])

    def _trace(self, node: fx.Node, kernel: Kernel, operands: list[fx.Node]) -> fx.GraphModule:
        fakes = [operand.meta["val"] for operand in operands]
        constants = fx.map_arg(node.args, lambda operand: operands.index(operand))
        key = (kernel.name, str(constants), tuple((str(f.shape), str(f.stride()), f.dtype) for f in fakes))
        if key in self.traces and not any(_symbolic(fake) for fake in fakes):
            return self.traces[key]

        def run(*tensors: torch.Tensor) -> Any:
            by_node = dict(zip(operands, tensors, strict=True))
            return kernel.cpu(*fx.map_arg(node.args, lambda operand: by_node[operand]))

        with compat.fresh_fake_mode(fakes):
            traced = compat.make_fx(run, decomposition_table=compat.decomposition_table())(*fakes)
        self.traces[key] = traced
        return traced


def _symbolic(tensor: torch.Tensor) -> bool:
    return any(not isinstance(extent, int) for extent in tensor.shape)


def _replace(node: fx.Node, results: Any) -> None:
    """Let the users of a call, or of its ``getitem``s, read the inlined results."""
    if isinstance(results, fx.Node):
        node.replace_all_uses_with(results)
        return
    for part in list(node.users):
        index = part.args[1]
        assert isinstance(index, int)
        part.replace_all_uses_with(results[index])
