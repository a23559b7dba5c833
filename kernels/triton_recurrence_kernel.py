"""The Triton kernels behind recurrence and recurrence_backward. Needs no torch.

A program has BATCH rows of the batch and runs through all steps; rows do not depend on each other, so programs never
wait for one another. A step is h [BATCH, n] times a matrix that comes from the L2 cache at every step, in pieces of
DEPTH rows, into sums [BATCH, WIDTH] that stay in registers. The state goes through global memory, where it has to be in
the end: a barrier between the steps lets all threads of the program read what the others wrote.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["IDENTITY", "MODRELU", "RELU", "TANH"]

RELU, MODRELU, TANH, IDENTITY = 0, 1, 2, 3
_RELU, _MODRELU, _TANH = tl.constexpr(RELU), tl.constexpr(MODRELU), tl.constexpr(TANH)


@triton.jit
def _times(sums, rows_of, weight, row, batch, HIDDEN: tl.constexpr, WIDTH: tl.constexpr, DEPTH: tl.constexpr,
           PRECISION: tl.constexpr, TURNED: tl.constexpr):  # fmt: skip
    """sums + x W, or with TURNED sums + x Wᵀ; x [batch, HIDDEN] at ``rows_of`` and W row by row in memory."""
    column = tl.arange(0, WIDTH)[None, :]
    for first in range(0, HIDDEN, DEPTH):
        depth = first + tl.arange(0, DEPTH)
        x = tl.load(
            rows_of + row[:, None] * HIDDEN + depth[None, :],
            mask=(row[:, None] < batch) & (depth[None, :] < HIDDEN),
            other=0.0,
        )
        place = column * HIDDEN + depth[:, None] if TURNED else depth[:, None] * HIDDEN + column
        w = tl.load(weight + place, mask=(depth[:, None] < HIDDEN) & (column < HIDDEN), other=0.0)
        sums = tl.dot(x, w, sums, input_precision=PRECISION)
    return sums


@triton.jit
def _activated(z, c, ACTIVATION: tl.constexpr):
    if ACTIVATION == _RELU:
        z = tl.where(z < 0, 0.0, z)  # a NaN stays one
    elif ACTIVATION == _MODRELU:
        magnitude = tl.abs(z) + c
        magnitude = tl.where(magnitude < 0, 0.0, magnitude)
        z = tl.where(z == 0, 0.0, tl.where(z < 0, -magnitude, magnitude))
    elif ACTIVATION == _TANH:
        small = tl.exp(-2.0 * tl.abs(z))
        magnitude = (1.0 - small) / (1.0 + small)
        z = tl.where(z < 0, -magnitude, magnitude)
    return z


@triton.jit
def _through(gradient, h, ACTIVATION: tl.constexpr):
    if ACTIVATION == _RELU:
        gradient = tl.where(h <= 0, 0.0, gradient)
    elif ACTIVATION == _MODRELU:
        gradient = tl.where(h == 0, 0.0, gradient)
    elif ACTIVATION == _TANH:
        gradient = gradient * (1.0 - h * h)
    return gradient


@triton.jit
def _forward_kernel(
    driven,
    weight,
    initial,
    threshold,
    states,
    steps,
    batch,
    HIDDEN: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BATCH: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.program_id(0) * BATCH + tl.arange(0, BATCH)
    column = tl.arange(0, WIDTH)[None, :]
    place = row[:, None] * HIDDEN + column
    inside = (row[:, None] < batch) & (column < HIDDEN)
    c = tl.zeros((1, WIDTH), tl.float32)
    if ACTIVATION == _MODRELU:
        c = tl.load(threshold + column, mask=column < HIDDEN, other=0.0).to(tl.float32)
    stride = tl.full((), HIDDEN, tl.int64) * batch  # batch is a constant where it is 1
    before, sums_of, target = initial, driven, states
    for _ in range(steps):
        z = tl.load(sums_of + place, mask=inside, other=0.0).to(tl.float32)
        z = _times(z, before, weight, row, batch, HIDDEN, WIDTH, DEPTH, PRECISION, True)
        tl.store(target + place, _activated(z, c, ACTIVATION).to(states.dtype.element_ty), mask=inside)
        tl.debug_barrier()
        before = target
        sums_of += stride
        target += stride


@triton.jit
def _backward_kernel(
    gradient,
    weight,
    states,
    sums,
    steps,
    batch,
    HIDDEN: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BATCH: tl.constexpr,
    WIDTH: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    row = tl.program_id(0) * BATCH + tl.arange(0, BATCH)
    column = tl.arange(0, WIDTH)[None, :]
    place = row[:, None] * HIDDEN + column
    inside = (row[:, None] < batch) & (column < HIDDEN)
    stride = tl.full((), HIDDEN, tl.int64) * batch  # batch is a constant where it is 1
    offset = (steps - 1) * stride
    g = tl.load(gradient + offset + place, mask=inside, other=0.0).to(tl.float32)
    for _ in range(steps - 1):
        h = tl.load(states + offset + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(sums + offset + place, _through(g, h, ACTIVATION).to(sums.dtype.element_ty), mask=inside)
        tl.debug_barrier()
        g = tl.load(gradient + offset - stride + place, mask=inside, other=0.0).to(tl.float32)
        g = _times(g, sums + offset, weight, row, batch, HIDDEN, WIDTH, DEPTH, PRECISION, False)
        offset -= stride
    h = tl.load(states + offset + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(sums + offset + place, _through(g, h, ACTIVATION).to(sums.dtype.element_ty), mask=inside)
