"""Windows of sensor signals, and nine numbers that describe each channel of one.

HDQT trains nets of three layers on features of windows: 405 of DSADS's 45 channels, which is nine a channel. Which
nine the paper does not say; these are ours.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["FEATURES", "features", "filled", "windows"]

FEATURES = 9
"""Numbers per channel: mean, standard deviation, least and largest value, the three quartiles, mean absolute step from
sample to sample, and the place of the largest amplitude of the spectrum, from 0 to 1 (half the sampling rate)."""


def features(signals: Tensor) -> Tensor:
    """Signals [N, samples, channels] to [N, 9 · channels]: the first feature of all channels, then the second."""
    quartiles = torch.quantile(signals, torch.tensor([0.25, 0.5, 0.75], dtype=signals.dtype), dim=1)
    spectrum = torch.fft.rfft(signals - signals.mean(1, keepdim=True), dim=1).abs()
    peak = spectrum.argmax(1).to(signals.dtype) / max(spectrum.shape[1] - 1, 1)
    step = (signals[:, 1:] - signals[:, :-1]).abs().mean(1)
    parts = [signals.mean(1), signals.std(1), signals.amin(1), signals.amax(1), *quartiles, step, peak]
    return torch.cat(parts, 1)


def windows(signals: NDArray[np.float64], labels: NDArray[np.int64], samples: int) -> dict[int, Tensor]:
    """Windows [N, samples, channels] of a recording by label, in the order of time, without overlap.

    Args:
        signals: [T, channels].
        labels: [T]; a window lies within a stretch of one label, and what does not fill one is dropped.
    """
    starts = np.flatnonzero(np.diff(labels)) + 1
    found: dict[int, list[Tensor]] = {}
    for stretch, own in zip(np.split(signals, starts), np.split(labels, starts), strict=True):
        count = len(stretch) // samples
        if count:
            cut = torch.tensor(stretch[: count * samples], dtype=torch.float32)
            found.setdefault(int(own[0]), []).append(cut.reshape(count, samples, -1))
    return {label: torch.cat(parts) for label, parts in found.items()}


def filled(signals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Signals [T, channels] whose missing values (NaN) lie on a line between their neighbours in time.

    A channel without any value stays NaN.
    """
    place = np.arange(len(signals))
    made = signals.copy()
    for channel in made.T:
        missing = np.isnan(channel)
        if missing.any() and not missing.all():
            channel[missing] = np.interp(place[missing], place[~missing], channel[~missing])
    return made
