"""A hook for training loops: calibrate again from time to time, and compile again where another decision comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from hadamard_fx import compat
from hadamard_fx.cost_model.calibration import Calibration
from hadamard_fx.errors import CalibrationError, OptionError
from hadamard_fx.plan import Role, Scheme
from hadamard_fx.policy import Policy

from .calibrate import Loss, record

__all__ = ["Recalibration"]


class Recalibration:
    """The compiled model of a step: call it with the step's batch in front of the forward.

    ::

        recalibration = hadamard_fx.Recalibration(model, loss, every=1000, options={"profile": "hot"})
        for batch in batches:
            loss(recalibration(batch), batch).backward()

    At the first step and at every ``every``-th one the batch calibrates the exact model; where the decisions differ
    from those of the last calibration the model is compiled anew. The parameters are the model's own all the time.

    Args:
        model, loss: as for ``calibrate``.
        every: steps between two calibrations.
        options: of the backend, but for ``"calibration"``.

    Attributes:
        calibration: the last one, None before the first step.
        compilations: how many there were.
    """

    def __init__(self, model: nn.Module, loss: Loss, *, every: int, options: Mapping[str, Any] | None = None) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise CalibrationError(f"every must be a number of steps, 1 or more, got {every!r}")
        if options and "calibration" in options:
            raise OptionError("Recalibration makes the calibration itself: leave 'calibration' out of its options")
        self.calibration: Calibration | None = None
        self.compilations = 0
        self._model = getattr(model, "_orig_mod", model)
        self._loss, self._every, self._options = loss, every, dict(options or {})
        self._steps = 0
        self._compiled: Callable[..., Any] = model
        self._chosen: dict[tuple[str, Role], Scheme] | None = None

    def __call__(self, batch: Any) -> Callable[..., Any]:
        """The compiled model for this step."""
        if self._steps % self._every == 0:
            self._calibrate(batch)
        self._steps += 1
        return self._compiled

    def _calibrate(self, batch: Any) -> None:
        device_profile = self._options.get("device_profile")
        self.calibration, recorder = record(self._model, [batch], self._loss, device_profile, progress=False)
        options = {**self._options, "calibration": self.calibration}
        chosen = recorder.choose(Policy.resolve(options))
        if chosen != self._chosen:
            self._chosen = chosen
            # Or torch would count what was compiled before against its limit, and run the model eagerly in the end.
            compat.forget_compiled(self._model)
            self._compiled = torch.compile(self._model, backend="hadamard", options=options)
            self.compilations += 1
