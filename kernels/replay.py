"""Calling an operator again as it was called before: straight to its launches.

Compiled code calls an operator at a *site*, each time with tensors of the same sizes, strides and dtypes and with the
same settings. What the operator does is then the same but for addresses: it allocates the same results and launches the
same kernels on them. The first call at a site may tune and compile; the second is recorded; later ones are replayed,
past torch's dispatcher and past all that the operator's launcher decides, which together cost more than the launch.

A call is replayed only if it did nothing but launch on its arguments, its results and this project's own memory. One
that also copied, cleared or asked torch for anything else stays as it is: a tensor that was launched on is then
unknown, or a result was never launched on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Protocol

import torch
from torch import Tensor

from hadamard_fx import compat

__all__ = ["Sites", "launched", "lent"]


class Launching(Protocol):
    """What a replay needs of a launch (``triton_launch.Launch``)."""

    loose: int
    """How many tensors, the last ones, may start anywhere."""

    def again(self, device: int) -> Callable[..., None] | None:
        """The launch on a stream of a device and addresses; None before the first launch there."""


@dataclass
class _Recording:
    """What one call did.

    Attributes:
        launches: each launch with its tensors.
        memory: tensors that are this project's own, by identity, and how a later call gets them: from a tensor on the
            device.
    """

    launches: list[tuple[Launching, tuple[Tensor, ...]]] = field(default_factory=list)
    memory: list[tuple[Tensor, Callable[[Tensor], Tensor]]] = field(default_factory=list)


_THREAD = threading.local()


@contextmanager
def _recording() -> Iterator[_Recording]:
    _THREAD.recording = recording = _Recording()
    try:
        yield recording
    finally:
        _THREAD.recording = None


def launched(launch: Launching, tensors: tuple[Tensor, ...]) -> None:
    """Tell the recording of this thread, if there is one, of a launch."""
    recording = getattr(_THREAD, "recording", None)
    if recording is not None:
        recording.launches.append((launch, tensors))


def lent(memory: Tensor, again: Callable[[Tensor], Tensor]) -> Tensor:
    """``memory``, which is this project's own; a later call gets its own by ``again``."""
    recording = getattr(_THREAD, "recording", None)
    if recording is not None:
        recording.memory.append((memory, again))
    return memory


class Sites:
    """The calls of one operator in compiled code: ``sites(site, *arguments)`` is ``op(*arguments)``.

    Args:
        op: the operator.

    A site's name is a digest of sizes, strides, dtypes, device and settings; calls at one site differ in nothing else.
    """

    def __init__(self, op: Callable[..., Any]) -> None:
        self.op = op
        self.replays: dict[str, _Replay] = {}
        self.called: dict[str, bool] = {}
        """Sites that were called before, and whether a recording may still be tried."""

    def __call__(self, site: str, *arguments: Any) -> Any:
        replay = self.replays.get(site)
        if replay is not None:
            results = replay(arguments)
            if results is not None:
                return results
        return self._slowly(site, arguments)

    def _slowly(self, site: str, arguments: tuple[Any, ...]) -> Any:
        hopeful = self.called.get(site)
        if not hopeful:
            results = self.op(*arguments)
            self.called.setdefault(site, True)
            return results
        with _recording() as recording:
            results = self.op(*arguments)
        replay = _Replay.of(recording, arguments, results)
        self.called[site] = False
        if replay is not None:
            self.replays[site] = replay
        return results


@dataclass(frozen=True)
class _Replay:
    """A recorded call without its tensors.

    Attributes:
        places: where tensors stand among the arguments, and whether it is a list of them.
        aligned: which of these tensors must start at multiples of 16 bytes.
        single: there is one result, not a tuple of them.
        results: shape, strides and dtype of each.
        memory: how to get this project's own memory, from a tensor on the device.
        steps: compiled kernels, and which of the arguments, results and memory, in this order, each is launched on.
    """

    places: tuple[tuple[int, bool], ...]
    aligned: tuple[int, ...]
    single: bool
    results: tuple[tuple[tuple[int, ...], tuple[int, ...], torch.dtype], ...]
    memory: tuple[Callable[[Tensor], Tensor], ...]
    steps: tuple[tuple[Callable[..., None], Callable[[list[int]], Any]], ...]
    empty: Callable[..., Tensor]

    @classmethod
    def of(cls, recording: _Recording, arguments: tuple[Any, ...], results: Any) -> _Replay | None:
        """The replay of what was recorded; None where something happened that was not recorded."""
        made = (results,) if isinstance(results, Tensor) else tuple(results)
        taken = list(compat.tensors(arguments))
        known = (*taken, *made, *(memory for memory, _ in recording.memory))
        steps = []
        written: set[int] = set()
        aligned: set[int] = set()
        for launch, tensors in recording.launches:
            picks = [_find(tensor, known) for tensor in tensors]
            run = launch.again(taken[0].get_device())
            if run is None or -1 in picks:
                return None
            written.update(picks)
            aligned.update(picks[: len(picks) - launch.loose])
            steps.append((run, itemgetter(*picks)))
        wanted = {len(taken) + i for i, result in enumerate(made) if result.numel()}
        aligned &= set(range(len(taken)))
        if not steps or not wanted <= written or _unaligned(taken, aligned):
            return None
        places = [(i, isinstance(a, list | tuple)) for i, a in enumerate(arguments) if [*compat.tensors([a])]]
        return cls(
            tuple(places),
            tuple(aligned),
            isinstance(results, Tensor),
            tuple((tuple(result.shape), result.stride(), result.dtype) for result in made),
            tuple(again for _, again in recording.memory),
            tuple(steps),
            compat.empty_strided(taken[0].device),
        )

    def __call__(self, arguments: tuple[Any, ...]) -> Any:
        """The operator's results; None where an argument does not start at a multiple of 16 bytes."""
        tensors: list[Tensor] = []
        for place, many in self.places:
            if many:
                tensors.extend(arguments[place])
            else:
                tensors.append(arguments[place])
        if _unaligned(tensors, self.aligned):
            return None
        first, empty = tensors[0], self.empty
        results = [empty(*result) for result in self.results]
        tensors += results
        for again in self.memory:
            tensors.append(again(first))
        addresses = [tensor.data_ptr() for tensor in tensors]
        stream = compat.raw_stream(first.get_device()) if first.is_cuda else 0
        for run, pick in self.steps:
            run(stream, *pick(addresses))
        return results[0] if self.single else results


def _find(tensor: Tensor, known: Sequence[Tensor]) -> int:
    """Which of ``known`` a tensor is, -1 if none. An empty one, of which only the address is passed, may be any."""
    return next((i for i, t in enumerate(known) if t is tensor), -1 if tensor.numel() else 0)


def _unaligned(tensors: Sequence[Tensor], places: Iterable[int]) -> bool:
    together = 0
    for place in places:
        together |= tensors[place].data_ptr()
    return together % 16 != 0
