"""Count what compiled code keeps between forward and backward: the same measure for every backend.

AOTAutograd hands its saved tensors to one autograd node, ``CompiledFunctionBackward``; ``saved_tensors_hooks`` does not
see them, the node does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

__all__ = ["saved_bytes"]


def saved_bytes(output: Tensor, excluded: Iterable[Tensor] = ()) -> int:
    """Bytes of the distinct storages that the compiled graphs behind ``output`` keep for the backward.

    Args:
        output: a result of compiled code, before its backward has run.
        excluded: tensors that live anyway: parameters, buffers, inputs.

    Raises:
        ValueError: no compiled graph with a backward led to ``output``.
    """
    nodes = [node for node in _ancestors(output.grad_fn) if "CompiledFunction" in node.name()]
    if not nodes:
        raise ValueError("no compiled graph with a backward led to this output (or its backward has already run)")
    storages: dict[int, int] = {}
    for node in nodes:
        for tensor in (*node.saved_tensors, *getattr(node, "_tensors_no_vc_check", ())):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    for tensor in excluded:
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def _ancestors(root: Any) -> list[Any]:
    """Every autograd node behind ``root``, itself included."""
    found, waiting = {}, [root]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found[node] = True
            waiting += [following for following, _ in node.next_functions]
    return list(found)
