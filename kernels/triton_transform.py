"""What the Triton kernels of the transforms share: Walsh entries, an exact product with them, and rounding.

The transform of a whole tile is one ``tl.dot`` with a block-diagonal ±1 matrix that each program builds from indices:
no reshape or permute stands between load and product. The product is exact up to the order of float32 sums: ±1 times
bfloat16 or float16 is exact, and a float32 operand is first split into three bfloat16 parts that add up to it.
A NaN spreads along one row of the left operand only, so rows of a tile must belong to one scale each.

Nothing here imports torch: the processes that compile (``ahead.py``) start in a fraction of the time without it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import triton
import triton.language as tl

from .arithmetic import FOLD, HEADROOM, MULTIPLIER, SEED_MULTIPLIER, SMALLEST, WEYL

if TYPE_CHECKING:
    import torch

CODES = {"nearest": 0, "stochastic": 1, "pseudo_stochastic": 2}
"""Rounding as the kernels know it."""

_WEYL = tl.constexpr(WEYL)
_MULTIPLIER = tl.constexpr(MULTIPLIER)
_SEED_MULTIPLIER = tl.constexpr(SEED_MULTIPLIER)
_FOLD = tl.constexpr(FOLD)
_SMALLEST = tl.constexpr(SMALLEST)
_HEADROOM = tl.constexpr(HEADROOM)
_MAGNITUDE = tl.constexpr(0x7FFFFFFF)
_ROUNDER = tl.constexpr(1.5 * 2.0**23)
"""Adding this to a float32 of magnitude below 2^22 rounds it to nearest, half to even, into the low bits of the sum."""


def matrix_dtype(dtype: torch.dtype) -> tl.dtype:
    """The type of the ±1 matrix for an operand of ``dtype``. Triton's interpreter cannot multiply bfloat16."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return tl.float32
    return tl.float16 if str(dtype) == "torch.float16" else tl.bfloat16


def fusion(rounding: str) -> dict[str, bool]:
    """Triton's option on fused multiply-adds, whose default differs from release to release.

    Rounding to nearest must see the rounded product, as the CPU does: ``v·factor + ROUNDER`` in one instruction sends
    exact halves elsewhere. A stochastic rounding has no exact halves, and gains an instruction per element.
    """
    return {"enable_fp_fusion": rounding != "nearest"}


@triton.jit
def walsh_entry(sequency, column, LOG_ORDER: tl.constexpr):
    """Entry ±1 (int32) of the Walsh matrix of order 2^LOG_ORDER; see ``walsh.py``."""
    gray = sequency ^ (sequency >> 1)
    row = sequency * 0
    for _ in tl.static_range(LOG_ORDER):
        row = (row << 1) | (gray & 1)
        gray = gray >> 1
    common = row & column
    common = common ^ (common >> 4)
    common = common ^ (common >> 2)
    common = common ^ (common >> 1)
    return 1 - 2 * (common & 1)


@triton.jit
def _permuted(column, COLUMNS: tl.constexpr):
    """Which column of the result a column of the product is for; see ``in_order``."""
    return (column % 8 // 2) * (COLUMNS // 4) + (column // 8) * 2 + column % 2


@triton.jit
def row_matrix(WIDTH: tl.constexpr, ORDER: tl.constexpr, LOG_ORDER: tl.constexpr, dtype: tl.constexpr):
    """I ⊗ H [WIDTH, WIDTH], its columns in the order that ``in_order`` undoes."""
    j = tl.arange(0, WIDTH)[:, None]
    s = _permuted(tl.arange(0, WIDTH), WIDTH)[None, :]
    entry = walsh_entry(s % ORDER, j % ORDER, LOG_ORDER)
    return tl.where(j // ORDER == s // ORDER, entry, 0).to(dtype)


@triton.jit
def token_matrix(
    BLOCKS: tl.constexpr,
    ORDER: tl.constexpr,
    LOG_ORDER: tl.constexpr,
    RANK: tl.constexpr,
    KEPT: tl.constexpr,
    dtype: tl.constexpr,
):
    """(I ⊗ Ĥ)ᵀ [BLOCKS·ORDER, BLOCKS·KEPT]; KEPT is RANK rounded up to a power of two, the columns between are 0.

    The columns stand in the order that ``in_order`` undoes.
    """
    t = tl.arange(0, BLOCKS * ORDER)[:, None]
    s = _permuted(tl.arange(0, BLOCKS * KEPT), BLOCKS * KEPT)[None, :]
    entry = walsh_entry(s % KEPT, t % ORDER, LOG_ORDER)
    return tl.where((t // ORDER == s // KEPT) & (s % KEPT < RANK), entry, 0).to(dtype)


@triton.jit
def in_order(v):
    """The result of a product with one of the matrices above, its columns in order.

    A thread holds two neighbours of every eight columns of a product. It is made to hold neighbours throughout, so
    that packing them into words moves no byte between threads.
    """
    ROWS: tl.constexpr = v.shape[0]
    COLUMNS: tl.constexpr = v.shape[1]
    pairs = tl.permute(tl.reshape(v, (ROWS, COLUMNS // 8, 4, 2)), (0, 2, 1, 3))
    return tl.reshape(pairs, (ROWS, COLUMNS))


@triton.jit
def thirds(x):
    """Three bfloat16 tensors, the smallest first, that add up to a float32 tensor."""
    high = x.to(tl.bfloat16)
    rest = x - high.to(tl.float32)
    middle = rest.to(tl.bfloat16)
    return (rest - middle.to(tl.float32)).to(tl.bfloat16), middle, high


@triton.jit
def exact_dot(x, matrix):
    """x · matrix in float32 for a matrix of 0 and ±1."""
    if matrix.dtype == tl.float32:
        v = tl.dot(x.to(tl.float32), matrix, input_precision="ieee")
    elif x.dtype == tl.float32:
        low, middle, high = thirds(x)
        v = tl.dot(high, matrix, tl.dot(middle, matrix, tl.dot(low, matrix)))
    else:
        v = tl.dot(x, matrix)
    return v


@triton.jit
def larger_magnitude(largest, v):
    """max(largest, |v|); NaN stays."""
    return tl.maximum(largest, tl.abs(v), propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def magnitude_bits(v):
    """|v| as int32 bits, which order like the magnitudes with NaN above inf: the maximum propagates NaN."""
    return v.to(tl.int32, bitcast=True) & _MAGNITUDE


@triton.jit
def floored(bits):
    """The float32 magnitude of ``bits``, at least SMALLEST; NaN stays."""
    amax = bits.to(tl.float32, bitcast=True)
    return tl.where(amax < _SMALLEST, _SMALLEST, amax)


@triton.jit
def quantising_factor(amax, QMAX: tl.constexpr, ROUNDING: tl.constexpr):
    """What v is multiplied by before it is rounded; see ``scaling.py`` on the headroom."""
    top: tl.constexpr = QMAX if ROUNDING == 0 else QMAX * _HEADROOM
    return tl.div_rn(tl.full(amax.shape, top, tl.float32), amax)


@triton.jit
def seed_word(seed, ROUNDING: tl.constexpr):
    """The 64-bit seed folded to uint32 (0 where no seed is needed)."""
    if ROUNDING == 1:
        value = tl.load(seed)
        word = (value ^ (value >> 32)).to(tl.uint32) * _SEED_MULTIPLIER
    else:
        word = tl.full((), 0, tl.uint32)
    return word


@triton.jit
def weyl(index):
    """index·A modulo 2^32."""
    return tl.cast(index, tl.uint32) * _WEYL


@triton.jit
def token_signs(token, word):
    """±1 (float32) of tokens; see ``signs.py``. ``word`` is that of their seed."""
    h = weyl(token) + word
    h = (h ^ (h >> _FOLD)) * _MULTIPLIER
    return tl.where(h.to(tl.int32, bitcast=True) < 0, -1.0, 1.0)


@triton.jit
def rounded(v, factor, counter, ROUNDING: tl.constexpr, dtype: tl.constexpr):
    """nearest(v·factor + d) as ``dtype``. ROUNDING: 0 nearest, 1 stochastic, 2 pseudo-stochastic.

    Neither conversion between integer and float instructions nor a rounding instruction: those run at an eighth of the
    rate of an addition. u is put into the mantissa of a number in [1, 2), the rounded integer is read from a mantissa.
    Nothing is clamped, which would take a fifth of the time: the factor's headroom keeps the result on the grid.
    """
    scaled = v * factor
    if ROUNDING != 0:
        if ROUNDING == 2:
            h = v.to(tl.uint32, bitcast=True) * _WEYL
        else:
            h = counter
        h = (h ^ (h >> _FOLD)) * _MULTIPLIER
        scaled += ((h >> 9) | 0x3F800000).to(tl.float32, bitcast=True) - 1.5
    shifted = scaled + _ROUNDER
    if dtype == tl.int8:
        q = shifted.to(tl.int32, bitcast=True).to(tl.int8)
    else:
        q = (shifted - _ROUNDER).to(dtype)
    return q


# Triton hashes a function when it is first asked for, and hashes a caller otherwise before its callees than after them:
# kernels that share callees would have a name in the cache that depends on who came first. Callees come first here.
for _function in list(globals().values()):
    if isinstance(_function, triton.JITFunction):
        _function.cache_key  # noqa: B018
