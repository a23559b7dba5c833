"""What rounding and saturation do to a signal: a gain, and noise that is not correlated with the signal.

Bussgang's decomposition: Q(v) = g·v + d with g = E[v Q(v)] / E[v²], so that E[v d] = 0. Products of two such operands
then have errors whose energies add. The values are taken to follow a generalised Gaussian density
∝ exp(−|v/a|^β) cut at the largest magnitude; β = 2 is Gaussian, and is fitted to the mean magnitude otherwise. The
moments over an interval are incomplete gamma functions, hence the integrals over all steps of a grid are finite sums.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from .statistics import GAUSSIAN_FLATNESS, Shape

__all__ = ["EXACT", "Noise", "quantise", "requantise", "saturate"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Noise:
    """What became of a signal of unit energy: ``gain``·signal + noise of energy ``variance``."""

    gain: float = 1.0
    variance: float = 0.0

    @property
    def energy(self) -> float:
        """E[Q(v)²]."""
        return self.gain**2 + self.variance

    def then(self, other: Noise) -> Noise:
        """The second applied to the first's result, relative to whose energy it is stated."""
        return Noise(self.gain * other.gain, self.variance * other.gain**2 + self.energy * other.variance)


EXACT = Noise()


def quantise(shape: Shape, top: int, rounding: str, values: int, alpha: float = 1.0) -> Noise:
    """Rounding to the integers −top..top, α times the largest magnitude being top.

    Args:
        shape: of the values that share a scale.
        rounding: one of ``hadamard_fx.scheme.ROUNDINGS``; pseudo-stochastic rounding draws from the distribution of
            stochastic rounding.
        values: how many share a scale; one of them is the largest and is met exactly, but for α.
    """
    return _quantise(round(shape.peak, 4), round(shape.flatness, 4), top, rounding == "nearest", values, alpha)


@functools.lru_cache(maxsize=65536)
def _quantise(peak: float, flatness: float, top: int, nearest: bool, values: int, alpha: float) -> Noise:
    end = alpha * peak
    step = end / top
    moments = _Moments(_exponent(flatness), peak)
    if nearest:
        edges = np.concatenate(([0.0], (np.arange(1, top + 1) - 0.5) * step, [peak]))
        m0, m1, m2 = moments.over(edges)
        level = np.arange(top + 1) * step
        correlation, energy = level @ m1, level**2 @ m0
    else:
        edges = np.append(np.arange(top + 1) * step, peak)
        m0, m1, m2 = moments.over(edges)
        k = np.arange(top)
        drawn = np.sum(-m2[:-1] + (2 * k + 1) * step * m1[:-1] - k * (k + 1) * step**2 * m0[:-1])
        correlation = np.sum(m2[:-1]) + end * m1[-1]
        energy = np.sum(m2[:-1]) + max(drawn, 0.0) + end**2 * m0[-1]
    largest = 1 / values
    signal = (1 - largest) * np.sum(m2) + largest * peak**2
    correlation = (1 - largest) * correlation + largest * peak * end
    energy = (1 - largest) * energy + largest * end**2
    gain = correlation / signal
    return Noise(float(gain), float(max(float(energy - gain**2 * signal), 0.0)))


@dataclass(frozen=True)
class _Moments:
    """Of magnitudes of unit root mean square, none above ``peak``."""

    exponent: float
    peak: float

    def over(self, edges: Array) -> tuple[Array, Array, Array]:
        """Probability, mean magnitude and mean square that fall between neighbouring edges."""
        beta = self.exponent
        unit = np.sqrt(special.gamma(1 / beta) / special.gamma(3 / beta))
        at = (edges / unit) ** beta
        whole = special.gammainc(1 / beta, (self.peak / unit) ** beta)
        mean = special.gamma(2 / beta) / special.gamma(1 / beta) * unit
        found = [np.diff(special.gammainc(n / beta, at)) for n in (1, 2, 3)]
        return found[0] / whole, found[1] * mean / whole, found[2] / whole


@functools.lru_cache(maxsize=65536)
def _exponent(flatness: float) -> float:
    """β of the density whose mean magnitude over root mean square is that, from 0.2 (sparse) to 20 (uniform)."""
    if abs(flatness - GAUSSIAN_FLATNESS) < 1e-3:
        return 2.0

    def excess(beta: float) -> float:
        ln = special.gammaln
        return float(np.exp(ln(2 / beta) - 0.5 * (ln(1 / beta) + ln(3 / beta)))) - flatness

    from scipy import optimize  # slow to import, and only data that is not Gaussian needs it

    low, high = 0.2, 20.0
    if excess(low) >= 0 or excess(high) <= 0:
        return low if excess(low) >= 0 else high
    return float(optimize.brentq(excess, low, high, xtol=1e-4))


def requantise(shape: Shape, top: int, new_top: int, rounding: str, alpha: float) -> Noise:
    """Integers −top..top, rounded to nearest from values of this shape, rounded again to −new_top..new_top.

    No transform lies between: the values stand on a grid, so that the second rounding is a sum over the grid's points.
    """
    beta, peak = _exponent(round(shape.flatness, 4)), shape.peak
    edges = np.concatenate(([0.0], (np.arange(1, top + 1) - 0.5) * alpha * peak / top, [peak]))
    probability = _Moments(beta, peak).over(edges)[0]
    level = np.arange(top + 1, dtype=np.float64)
    scaled = level / (alpha * top) * new_top
    scaled = np.minimum(scaled, new_top)
    below = np.floor(scaled)
    mean = np.round(scaled) if rounding == "nearest" else scaled
    square = mean**2 if rounding == "nearest" else scaled**2 + (scaled - below) * (below + 1 - scaled)
    step = alpha * top / new_top
    signal = probability @ level**2
    if signal == 0:
        return EXACT
    gain = step * (probability @ (level * mean)) / signal
    return Noise(float(gain), float(max(float(step**2 * (probability @ square) / signal - gain**2), 0.0)))


def saturate(deviation: float, limit: float) -> Noise:
    """A Gaussian sum of that standard deviation, clamped to ±limit."""
    if deviation <= 0 or limit / deviation > 12:
        return EXACT
    c = limit / deviation
    inside = special.erf(c / np.sqrt(2))
    density = np.exp(-(c**2) / 2) / np.sqrt(2 * np.pi)
    energy = inside - 2 * c * density + c**2 * (1 - inside)
    return Noise(float(inside), float(max(energy - inside**2, 0.0)))
