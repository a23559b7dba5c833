"""``calibrate(model, batches, loss)``: the exact model on a few batches, and what was seen of its products."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

from hadamard_fx import compat
from hadamard_fx.cost_model.calibration import Calibration
from hadamard_fx.errors import CalibrationError, HadamardError

from .recorder import Recorder

__all__ = ["Loss", "calibrate"]

Loss = Callable[[Any, Any], torch.Tensor]
"""(model, batch) -> the scalar that training differentiates."""


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Loss,
    *,
    device_profile: str | None = None,
    progress: bool | None = None,
) -> Calibration:
    """Run forward and backward of the exact model on each batch, and record the statistics and errors of its products.

    Nothing of the model changes: parameters, gradients, buffers and the random number generators are as they were. No
    activation is kept beyond what the exact model keeps; a product's operands are looked at when it is computed.

    Args:
        model: as it is trained, in the mode (train or eval) that counts. A compiled one is taken for what it wraps.
        batches: whatever ``loss`` takes; two or three are enough.
        loss: of (model, batch), a scalar: ``lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])``. It must
            call the model that it is given. Autocast belongs in here.
        device_profile: as the option of that name: it refines the schemes that are measured.
        progress: show a progress bar; by default where standard error is a terminal.

    Raises:
        CalibrationError: no module, no batch, no parameter to train, no scalar, no product of a layer, or a product
            that is not finite.
    """
    return record(model, batches, loss, device_profile, progress)[0]


def record(
    model: nn.Module, batches: Iterable[Any], loss: Loss, device_profile: str | None, progress: bool | None
) -> tuple[Calibration, Recorder]:
    """``calibrate``, and who recorded it."""
    original = getattr(model, "_orig_mod", model)
    if not isinstance(original, nn.Module):
        raise CalibrationError(f"model must be an nn.Module, whose layers have names, got {model!r}")
    trained = [parameter for parameter in original.parameters() if parameter.requires_grad]
    if not trained:
        raise CalibrationError("no parameter of the model requires a gradient: there is no backward to calibrate")
    recorder, count = Recorder(device_profile), 0
    with _unchanged(original), compat.any_number_of_compilations():
        watched = _Watched(original, recorder)
        for batch in _shown(batches, progress):
            _step(watched, batch, loss, trained)
            count += 1
    if not count:
        raise CalibrationError("there is no batch to calibrate on: batches is empty, or was used up before")
    products = recorder.products()
    if not products:
        raise CalibrationError(
            "no product of a layer's weight was seen: loss(model, batch) must call the model that it is given, which "
            "must have linear layers or convolutions in float32, bfloat16 or float16"
        )
    device = next(iter(trained)).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    versions = (("hadamard_fx", _version()), ("torch", str(torch.__version__)))
    return Calibration(products, count, name, versions), recorder


class _Stand(nn.Module):
    """The model behind a forward whose code is no other function's.

    torch keeps compiled code with the code object that it was made of, and counts it against a limit: that of a
    calibration goes with this object, and the user's own compiled model is left alone.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._orig_mod = model
        self.training = model.training  # not train(): parts of the model may be in another mode
        own = type(self)._forward
        self.forward = types.MethodType(types.FunctionType(own.__code__.replace(), own.__globals__), self)

    def _forward(self, *inputs: Any, **named: Any) -> Any:
        return self._orig_mod(*inputs, **named)


class _Watched:
    """What the loss calls: recorded where it is called, the model itself in all else."""

    def __init__(self, model: nn.Module, recorder: Recorder) -> None:
        self._model = model
        # Sizes differ from model to model and from batch to batch: none is to become a symbol because of that.
        self._compiled = torch.compile(_Stand(model), backend=recorder.backend, dynamic=False)

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        return self._compiled(*inputs, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _step(watched: Any, batch: Any, loss: Loss, trained: list[nn.Parameter]) -> None:
    try:
        with torch.enable_grad():
            value = loss(watched, batch)
            if not isinstance(value, torch.Tensor) or value.numel() != 1 or not value.requires_grad:
                raise CalibrationError(
                    "loss(model, batch) must return a scalar tensor that depends on the model's parameters, it "
                    f"returned {_told(value)}"
                )
            torch.autograd.grad(value.reshape(()), trained, allow_unused=True)
    except compat.BackendCompilerFailed as failure:
        if isinstance(failure.inner_exception, HadamardError):
            raise failure.inner_exception from None
        raise


def _told(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {[*value.shape]}" + ("" if value.requires_grad else " without a gradient")
    return f"a {type(value).__name__}"


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Put buffers and random number generators back; gradients are never touched."""
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])


def _shown(batches: Iterable[Any], progress: bool | None) -> Iterator[Any]:
    """The batches, with a progress bar on standard error."""
    if progress is None:
        progress = sys.stderr.isatty()
    columns = (TextColumn("calibrating"), BarColumn(), MofNCompleteColumn(), TextColumn("batches"), TimeElapsedColumn())
    total = len(batches) if isinstance(batches, Sized) else None
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=console.is_terminal, disable=not progress) as bar:
        task = bar.add_task("", total=total)
        for batch in batches:
            yield batch
            bar.advance(task)


def _version() -> str:
    try:
        return version("hadamard-fx")
    except PackageNotFoundError:
        return "not installed"
