"""quantize_kept: Q(x (I ⊗ Ĥ)ᵀ) along the last axis, Ĥ some rows of H, with one scale whose range is a choice of rules.

What HOT's published code does differently from the paper (arXiv 2503.21261) needs two things that the fast kernels do
not have: a triangle of rows, and SAWB's clipped range (Choi et al. 2019, "Accurate and Efficient 2-bit Quantized Neural
Networks") for operands that keep their value.

- rows ``"all"``: H in the order of sequency, as ``quantize_rows`` and ``quantize_weight`` have it.
- rows ``"triangle"``: H_n = H_a ⊗ H_b with a = 2^⌈log2(n)/2⌉, b = n/a; the rows (i, j), sequencies of H_a and of H_b,
  with i/a + j/b < 1: 10 of 16, i + j < 4. Where a ≠ b the published code tells nothing; the rule is this project's.
- rule ``"minmax"``: max|v|; ``"sawb"``: 12.1 √E[v²] − 12.2 E|v|, a fit of the best clip for 4 bits, at E|v| at least:
  where nearly all |v| are equal it would fall below zero (the bound is ours).

The transform adds and subtracts pairs: the same float32 sums on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .library import Kernel, register
from .quantize_clipped import sylvester_transform
from .rounding import dither, flat_index, reference_uniform, round_to_integer
from .scaling import SMALLEST, qmax, scale_factor, scales
from .traffic import ALIGNMENT, SCALE_BYTES, Expression, Traffic, ceil_div, padded
from .walsh import sylvester_row, walsh_reference

__all__ = ["KERNEL", "cpu", "cuda", "fake", "kept_rows", "reference", "triangle"]

SCHEMA = "(Tensor x, Tensor? seed, int order, str rows, int bits, str rule, str rounding) -> (Tensor q, Tensor scales)"

SAWB = (12.1, 12.2)
"""Coefficients of √E[v²] and of E|v|."""


def triangle(order: int) -> tuple[int, ...]:
    """How many of the lowest sequencies j are kept for each sequency i: (4, 3, 2, 1) for 16."""
    down, across = _sides(order)
    return tuple(-(-across * (down - i) // down) for i in range(down))


def kept_rows(order: int, rows: str) -> int:
    """Rows of one block: 10 of a triangle of 16."""
    return sum(triangle(order)) if rows == "triangle" else order


def _sides(order: int) -> tuple[int, int]:
    power = order.bit_length() - 1
    return 1 << (power + 1) // 2, 1 << power // 2


def reference(
    x: Tensor, seed: int | None, order: int, rows: str, bits: int, rule: str, rounding: str
) -> tuple[Tensor, Tensor]:
    """The formula in float64, element by element where it rounds.

    Args:
        x: [R, K].
        seed: of the stochastic rounding; ``rounding`` is ``"nearest"`` or ``"stochastic"`` here.
        order: of the transform along K, blocks are zero-padded; 1 for none.
        rows, rule: as above.
        bits: of the integers, 2..8.

    Returns:
        q [R, Kp] as float64 integers and the scale [1, 1] in float64; q·scale ≈ x (I ⊗ Ĥ)ᵀ/√order.
    """
    lines, columns = x.shape
    matrix = walsh_reference(order)
    if rows == "triangle":
        down, across = (walsh_reference(side) for side in _sides(order))
        pairs = [(i, j) for i in range(len(down)) for j in range(len(across)) if i / len(down) + j / len(across) < 1]
        matrix = torch.stack([torch.kron(down[i], across[j]) for i, j in pairs])
    blocks = -(-columns // order)
    extended = torch.nn.functional.pad(x.double(), (0, blocks * order - columns)).view(lines, blocks, order)
    v = (extended @ matrix.t()).reshape(lines, -1)
    mean = v.abs().mean()
    fitted = torch.maximum(SAWB[0] * v.square().mean().sqrt() - SAWB[1] * mean, mean)
    end = torch.clamp(fitted if rule == "sawb" else v.abs().max(), min=SMALLEST)
    t = v * (qmax(bits) / end)
    if rounding == "nearest":
        q = t.round()
    else:
        assert seed is not None and rounding == "stochastic"
        u = [reference_uniform(i, seed) for i in range(v.numel())]
        q = (t + torch.tensor(u, dtype=torch.float64).view(v.shape)).floor()
    q = torch.nn.functional.pad(q.clamp(-qmax(bits), qmax(bits)), (0, -v.shape[1] % ALIGNMENT))
    return q, (end * scale_factor(bits, order)).view(1, 1)


def cpu(
    x: Tensor, seed: Tensor | None, order: int, rows: str, bits: int, rule: str, rounding: str
) -> tuple[Tensor, Tensor]:
    """The operator in functional PyTorch, on every device; arguments and results as ``fake`` says."""
    if x.shape[0] == 0 or x.shape[1] == 0:
        q, empty = fake(x, seed, order, rows, bits, rule, rounding)
        return q.zero_(), empty.zero_()
    v = _transformed(x, order, rows)
    lines, width = v.shape
    if rule == "sawb":  # a difference of two moments, which float32 sums in another order would change
        mean = v.abs().mean(dtype=torch.float64)
        end = torch.maximum(SAWB[0] * v.square().mean(dtype=torch.float64).sqrt() - SAWB[1] * mean, mean).float()
    else:
        end = v.abs().amax()
    offset = dither(v, flat_index(lines, width, v.device), seed, rounding)
    factor, dequantise = scales(end.view(1, 1), bits, order, rounding)
    q = round_to_integer(v * factor, offset, qmax(bits)).to(torch.int8)
    return torch.nn.functional.pad(q, (0, -width % ALIGNMENT)), dequantise


def _transformed(x: Tensor, order: int, rows: str) -> Tensor:
    """x (I ⊗ Ĥ)ᵀ, unscaled, in float32. Built from slices: no index tensor has to come from the host."""
    v = sylvester_transform(x, order)
    lines = v.shape[0]
    if rows == "all":
        return v.reshape(lines, -1, order)[:, :, _by_sequency(order, v.device)].reshape(lines, -1)
    down, across = _sides(order)
    v = v.reshape(lines, -1, down, across)
    v = v[:, :, _by_sequency(down, v.device)][:, :, :, _by_sequency(across, v.device)]
    return torch.cat([v[:, :, i, :count] for i, count in enumerate(triangle(order))], 2).reshape(lines, -1)


def _by_sequency(order: int, device: torch.device) -> Tensor:
    return sylvester_row(torch.arange(order, dtype=torch.int32, device=device), order).long()


def cuda(
    x: Tensor, seed: Tensor | None, order: int, rows: str, bits: int, rule: str, rounding: str
) -> tuple[Tensor, Tensor]:
    """The operator on CUDA tensors: the functional form; it serves a comparison, and is not tuned."""
    q, found = cpu(x, seed, order, rows, bits, rule, rounding)
    return q.contiguous(), found


def fake(
    x: Tensor, seed: Tensor | None, order: int, rows: str, bits: int, rule: str, rounding: str
) -> tuple[Tensor, Tensor]:
    """Shapes: q int8 [R, Kp], Kp the kept rows of all blocks padded to a multiple of 16; scale float32 [1, 1].

    Raises:
        ValueError: unknown rows or rule, or a stochastic rounding without a seed.
    """
    if rows not in ("all", "triangle") or rule not in ("minmax", "sawb"):
        raise ValueError(f"rows must be all or triangle and rule minmax or sawb, got {rows!r} and {rule!r}")
    if seed is None and rounding == "stochastic":
        raise ValueError("stochastic rounding needs a seed: a 0-d int64 tensor on the device of the input")
    lines, columns = x.shape
    width = -(-columns // order) * kept_rows(order, rows)
    width = -(-width // ALIGNMENT) * ALIGNMENT
    return x.new_empty((lines, width), dtype=torch.int8), x.new_empty((1, 1), dtype=torch.float32)


def traffic(rows: Expression, k: Expression, order: int, kept: int, itemsize: int) -> Traffic:
    """Two reads, as one scale serves all; one write.

    Args:
        rows, k: of x.
        order, kept: of the transform, and the rows of it that are kept.
        itemsize: bytes of one element of x.
    """
    width = padded(ceil_div(k, order) * kept)
    operations = rows * k * (order.bit_length() + 9)
    return Traffic("quantize_kept", 2 * rows * k * itemsize, rows * width + SCALE_BYTES, operations, "vector")


KERNEL = register(Kernel("quantize_kept", SCHEMA, reference, cpu, fake, traffic), cuda)
