"""The C++ of walsh_recurrence: all steps of a row of the batch, whose state and sums stay in the first-level cache.

A transform of order d is one of order 16 in each 16 values, as sums of 16 scaled rows of signs, and log₂(d/16) sweeps
of sums and differences of whole vectors.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from .activation import ACTIVATIONS
from .cpp_build import build

__all__ = ["backward", "forward"]

SOURCE = r"""
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <omp.h>
#include <type_traits>

namespace {

using i64 = int64_t;
constexpr int LANES = 16;
typedef float F16 __attribute__((vector_size(4 * LANES)));

inline F16 load(const float* p) {
    F16 v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline void store(float* p, F16 v) { std::memcpy(p, &v, sizeof v); }

enum { RELU, MODRELU, TANH, IDENTITY };

struct Signs16 {
    F16 row[LANES];
    Signs16() {
        for (int i = 0; i < LANES; i++)
            for (int j = 0; j < LANES; j++) row[i][j] = __builtin_parity(unsigned(i & j)) ? -1.0f : 1.0f;
    }
};
const Signs16 SIGNS16;

void transform(float* x, i64 order) {
    i64 half = 1;
    if (order >= LANES) {
        for (i64 first = 0; first < order; first += LANES) {
            float value[LANES];
            std::memcpy(value, x + first, sizeof value);
            F16 sums = {};
            for (int i = 0; i < LANES; i++) sums += value[i] * SIGNS16.row[i];
            store(x + first, sums);
        }
        half = LANES;
    }
    for (; half < order; half *= 2)
        for (i64 start = 0; start < order; start += 2 * half) {
            float *low = x + start, *high = low + half;
            if (half < LANES) {
                for (i64 i = 0; i < half; i++) {
                    const float a = low[i], b = high[i];
                    low[i] = a + b, high[i] = a - b;
                }
                continue;
            }
            for (i64 i = 0; i < half; i += LANES) {
                const F16 a = load(low + i), b = load(high + i);
                store(low + i, a + b), store(high + i, a - b);
            }
        }
}

template <int activation> inline float activated(float z, float c) {
    if (activation == RELU) return z < 0 ? 0.0f : z;
    if (activation == TANH) return std::tanh(z);
    if (activation == IDENTITY) return z;
    const float magnitude = std::fabs(z) + c, kept = magnitude < 0 ? 0.0f : magnitude;
    return z == 0 ? 0.0f : z < 0 ? -kept : kept;
}

template <int activation> inline float through(float gradient, float h) {
    if (activation == RELU) return h <= 0 ? 0.0f : gradient;
    if (activation == TANH) return gradient * (1 - h * h);
    return activation == MODRELU && h == 0 ? 0.0f : gradient;
}

struct Problem {
    const float *outer, *scaled, *initial, *threshold;  // driven or the gradient; sign/√d
    i64 steps, batch, order;
};

template <int activation> void forward_row(const Problem& p, i64 b, float* sums, float* states) {
    const float* h = p.initial + b * p.order;
    for (i64 t = 0; t < p.steps; t++) {
        const i64 place = (t * p.batch + b) * p.order;
        std::memcpy(sums, h, sizeof(float) * p.order);
        transform(sums, p.order);
        float* target = states + place;
        const float* driven = p.outer + place;
#pragma omp simd
        for (i64 i = 0; i < p.order; i++)
            target[i] = activated<activation>(
                sums[i] * p.scaled[i] + driven[i], activation == MODRELU ? p.threshold[i] : 0.0f);
        h = target;
    }
}

template <int activation>
void backward_row(const Problem& p, i64 b, float* work, const float* states, float* sums, float* signs) {
    float* own = signs + b * p.order;
    std::memset(own, 0, sizeof(float) * p.order);
    std::memset(work, 0, sizeof(float) * p.order);
    for (i64 t = p.steps - 1; t >= 0; t--) {
        const i64 place = (t * p.batch + b) * p.order;
        float* target = sums + place;
        const float *gradient = p.outer + place, *h = states + place;
        const float* before = t ? h - p.batch * p.order : p.initial + b * p.order;
#pragma omp simd
        for (i64 i = 0; i < p.order; i++) target[i] = through<activation>(gradient[i] + work[i], h[i]);
        std::memcpy(work, before, sizeof(float) * p.order);
        transform(work, p.order);
#pragma omp simd
        for (i64 i = 0; i < p.order; i++) own[i] += target[i] * work[i];
#pragma omp simd
        for (i64 i = 0; i < p.order; i++) work[i] = p.scaled[i] * target[i];
        transform(work, p.order);
    }
}

template <typename Row> int rows(const Problem& p, int threads, Row row) {  // 1 where memory ran out
    int failed = 0;
#pragma omp parallel for num_threads(threads) reduction(| : failed)
    for (i64 b = 0; b < p.batch; b++) {
        float* work = (float*)std::malloc(sizeof(float) * p.order);
        if (work) row(b, work);
        else failed = 1;
        std::free(work);
    }
    return failed;
}

}  // namespace

extern "C" int walsh_forward(
    const float* driven, const float* scaled, const float* initial, const float* threshold, float* states, i64 steps,
    i64 batch, i64 order, int activation, int threads) {
    const Problem p{driven, scaled, initial, threshold, steps, batch, order};
    const auto run = [&](auto kind) {
        return rows(p, threads, [&](i64 b, float* work) { forward_row<decltype(kind)::value>(p, b, work, states); });
    };
    if (activation == RELU) return run(std::integral_constant<int, RELU>{});
    if (activation == MODRELU) return run(std::integral_constant<int, MODRELU>{});
    if (activation == TANH) return run(std::integral_constant<int, TANH>{});
    return run(std::integral_constant<int, IDENTITY>{});
}

extern "C" int walsh_backward(
    const float* gradient, const float* scaled, const float* states, const float* initial, float* sums, float* signs,
    i64 steps, i64 batch, i64 order, int activation, int threads) {
    const Problem p{gradient, scaled, initial, nullptr, steps, batch, order};
    const auto run = [&](auto kind) {
        return rows(p, threads, [&](i64 b, float* work) {
            backward_row<decltype(kind)::value>(p, b, work, states, sums, signs);
        });
    };
    if (activation == RELU) return run(std::integral_constant<int, RELU>{});
    if (activation == MODRELU) return run(std::integral_constant<int, MODRELU>{});
    if (activation == TANH) return run(std::integral_constant<int, TANH>{});
    return run(std::integral_constant<int, IDENTITY>{});
}
"""

_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_SIZES: list[Any] = [_LONG, _LONG, _LONG, _INT, _INT]


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded library, its functions typed.

    Raises:
        KernelError: there is no working C++ compiler.
    """
    loaded = build(SOURCE, "walsh_recurrence (C++)")
    for name, tensors in (("walsh_forward", 5), ("walsh_backward", 6)):
        getattr(loaded, name).argtypes = [_POINTER] * tensors + _SIZES
        getattr(loaded, name).restype = _INT
    return loaded


def forward(driven: Tensor, scaled: Tensor, initial: Tensor, threshold: Tensor | None, activation: str) -> Tensor:
    """States [T, B, d] float32 from contiguous float32 tensors; ``scaled`` [d] is sign/√d.

    Raises:
        MemoryError: there is no room for a state.
    """
    states = torch.empty_like(driven)
    _run(library().walsh_forward, activation, driven, scaled, initial, threshold, states)
    return states


def backward(
    gradient: Tensor, scaled: Tensor, states: Tensor, initial: Tensor, activation: str
) -> tuple[Tensor, Tensor]:
    """g_z [T, B, d], and Σ_t g_z[t] ⊙ (H h_{t−1}) of every row of the batch [B, d]; float32."""
    sums, signs = torch.empty_like(states), torch.empty_like(initial)
    _run(library().walsh_backward, activation, gradient, scaled, states, initial, sums, signs)
    return sums, signs


def _run(function: Any, activation: str, first: Tensor, *others: Tensor | None) -> None:
    addresses = [None if tensor is None else tensor.data_ptr() for tensor in (first, *others)]
    if function(*addresses, *first.shape, ACTIVATIONS.index(activation), torch.get_num_threads()):
        raise MemoryError("walsh_recurrence: no memory for a state")
