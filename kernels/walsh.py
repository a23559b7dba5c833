"""Walsh matrices: Hadamard matrices with their rows in the order of sequency (number of sign changes).

Sylvester's H_2n = [[H_n, H_n], [H_n, -H_n]] has H_n H_nᵀ = n I; sorting its rows by sign changes gives the Walsh
matrix, whose first rows are the smooth ones: cutting to ``rank`` rows is a low-pass filter along the axis (HOT,
arXiv 2503.21261, section 3). The matrix of sequency order is symmetric, so x H and H x are one transform.

The entries have a closed form, which is what the kernels use: row s of the Walsh matrix is row bitreverse(s ^ (s >> 1))
of Sylvester's, and entry (i, j) of Sylvester's is (-1)^popcount(i & j).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "block_transform",
    "low_rank_walsh",
    "sylvester",
    "sylvester_row",
    "token_transform",
    "walsh",
    "walsh_reference",
]


def walsh_reference(order: int) -> Tensor:
    """The ±1 Walsh matrix [order, order] in float64, by Sylvester's recursion and a sort by sign changes.

    Args:
        order: a power of two.
    """
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while matrix.shape[0] < order:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)], 0)
    sign_changes = (matrix[:, 1:] != matrix[:, :-1]).sum(1)
    return matrix[sign_changes.argsort()]


def sylvester_row(sequency: Tensor, order: int) -> Tensor:
    """Which row of Sylvester's matrix has that sequency: the bit reversal of the Gray code. int32 in, int32 out."""
    gray = sequency ^ (sequency >> 1)
    reversed_bits = torch.zeros_like(gray)
    for _ in range(order.bit_length() - 1):
        reversed_bits = (reversed_bits << 1) | (gray & 1)
        gray = gray >> 1
    return reversed_bits


def low_rank_walsh(rank: int, order: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Ĥ [rank, order]: the ``rank`` lowest sequencies of the Walsh matrix, ±1.

    Built from indices, so that a traced graph holds no constant tensor.
    """
    return _entries(sylvester_row(torch.arange(rank, dtype=torch.int32, device=device), order), order, dtype)


def sylvester(order: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Sylvester's matrix [order, order], ±1, symmetric: the one of the fast transform in its natural order."""
    return _entries(torch.arange(order, dtype=torch.int32, device=device), order, dtype)


def _entries(row: Tensor, order: int, dtype: torch.dtype) -> Tensor:
    """Rows of Sylvester's matrix; orders up to 2^15."""
    device = row.device
    common = row[:, None] & torch.arange(order, dtype=torch.int32, device=device)[None, :]
    common = common ^ (common >> 8)
    common = common ^ (common >> 4)
    common = common ^ (common >> 2)
    common = common ^ (common >> 1)
    return (1 - 2 * (common & 1)).to(dtype)


def walsh(order: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """The Walsh matrix [order, order], ±1, symmetric."""
    return low_rank_walsh(order, order, device, dtype)


def block_transform(x: Tensor, order: int, multiple: int) -> Tensor:
    """x (I ⊗ H): every block of ``order`` columns times the Walsh matrix, unscaled, in float32.

    Args:
        x: [R, K].
        order: of the transform.
        multiple: the columns are zero-padded to a multiple of this, itself a multiple of ``order``.

    Returns:
        float32 [R, K rounded up].
    """
    rows, columns = x.shape
    blocks = -(-columns // multiple) * (multiple // order)
    x = _zero_padded(x.to(torch.float32), (0, blocks * order - columns))
    v = x.reshape(rows * blocks, order) @ walsh(order, x.device)
    return v.reshape(rows, blocks * order)


def token_transform(x: Tensor, order: int, rank: int, multiple: int) -> Tensor:
    """(I ⊗ Ĥ) x: the ``rank`` lowest sequencies of every block of ``order`` rows, unscaled, in float32.

    Args:
        x: [L, C], L tokens.
        order, rank: of the transform.
        multiple: the number of blocks is zero-padded to a multiple of this.

    Returns:
        float32 [blocks, rank, C].
    """
    tokens, channels = x.shape
    blocks = -(-tokens // (order * multiple)) * multiple
    x = _zero_padded(x.to(torch.float32), (0, 0, 0, blocks * order - tokens))
    matrix = low_rank_walsh(rank, order, x.device)
    return torch.bmm(matrix.expand(blocks, rank, order), x.reshape(blocks, order, channels))


def _zero_padded(x: Tensor, padding: tuple[int, ...]) -> Tensor:
    """``pad``, but no copy where the padding is known to be none (a symbolic size never is, nor is it branched on)."""
    if all(isinstance(size, int) and size == 0 for size in padding):
        return x
    return torch.nn.functional.pad(x, padding)
