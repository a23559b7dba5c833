"""Products that ``FindGemms`` does not look at: they stay exact and have no price, and a report must say so."""

from __future__ import annotations

import re
from collections import Counter

import torch
import torch.fx as fx

from .find_gemms import LEFT_OPERAND

__all__ = ["products_elsewhere"]

_NAME = re.compile(r"(?:^|_)(?:mm|bmm|addbmm|mv|addmv|matmul|linear|gemm|gru|lstm|rnn)(?:_|$)")
"""A part of the names of operators that multiply matrices, other people's among them."""


def products_elsewhere(graph: fx.Graph) -> str:
    """A sentence that names the operators, ``""`` where there are none.

    Args:
        graph: a joint or an inference graph, as it comes.
    """
    found: Counter[str] = Counter()
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            if any(_multiplies(part) for part in _parts(node)):
                found[f"the branches of {node.target.name()}"] += 1
        elif _is_product(node):
            found[str(node.target).removesuffix(".default")] += 1
    if not found:
        return ""
    named = ", ".join(f"{name} ({count}×)" if count > 1 else name for name, count in found.items())
    return f"products that are not looked at stay exact and are in no figure of this report: {named}"


def _is_product(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target in LEFT_OPERAND:
        return False
    return _NAME.search(target._schema.name.partition("::")[2]) is not None


def _parts(node: fx.Node) -> list[fx.GraphModule]:
    owner = node.graph.owning_module
    inner = [operand for operand in node.all_input_nodes if operand.op == "get_attr"]
    modules = [getattr(owner, str(operand.target), None) for operand in inner]
    return [module for module in modules if isinstance(module, fx.GraphModule)]


def _multiplies(part: fx.GraphModule) -> bool:
    for node in part.graph.nodes:
        if node.op != "call_function":
            continue
        if node.target in LEFT_OPERAND or _is_product(node) or any(_multiplies(inner) for inner in _parts(node)):
            return True
        if getattr(node.target, "__name__", "") in ("linear", "matmul", "bmm"):
            return True
    return False
