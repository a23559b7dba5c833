"""compress_tokens: Q(Ĥ x) along the tokens, transposed, for g_w = Q(Ĥ g_y)ᵀ · Q(Ĥ x).

Ĥ keeps the ``rank`` lowest sequencies of every block of ``order`` tokens, so that the product contracts over rank/order
of the tokens; x compressed in the forward is what is saved for the backward (activation buffer compression).

Source: HOT (arXiv 2503.21261), section 3, "HLA" and "ABC". A scale may vary along channels (they are not contracted);
along tokens only by groups whose partial sums the product rescales.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .library import Kernel, register, triton_bodies
from .rounding import dither, reference_uniform, round_to_integer
from .scaling import carrier_dtype, padded_kept, qmax, scale_factor, scales, summed_tokens
from .signs import normaliser, reference_signs, token_signs
from .traffic import ALIGNMENT, SCALE_BYTES, Expression, Traffic, ceil_div, padded
from .walsh import token_transform, walsh_reference

__all__ = ["KERNEL", "compress", "cpu", "cuda", "fake", "native", "reference", "traffic"]

SCHEMA = (
    "(Tensor x, Tensor? seed, int order, int rank, int bits, str scale, str rounding, int group, bool sums=False,"
    " Tensor? signs=None)"
    " -> (Tensor q, Tensor scales, Tensor sums)"
)


def reference(
    x: Tensor,
    seed: int | None,
    order: int,
    rank: int,
    bits: int,
    scale: str,
    rounding: str,
    group: int,
    sums: bool = False,
    signs: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The formula in float64, element by element where it rounds.

    Args:
        x: [L, C].
        seed: of the stochastic rounding; ``rounding`` is ``"nearest"`` or ``"stochastic"`` here.
        order, rank, bits, scale, rounding, group: as in ``hadamard_fx.scheme.LowRank``.
        sums: also add up the tokens, ``summed_tokens(order, rank, group)`` at a time: a bias gradient but for its last
            sum.
        signs: seed of the tokens' random signs (``signs.py``), which the sums do not have; None: all are +1.

    Returns:
        q [C, Lp] as float64 integers, the scale [G, C] or [G, 1] in float64, and the sums [S, C], [0, C] if not wanted.
    """
    tokens, channels = x.shape
    blocks, kept = -(-tokens // order), padded_kept(tokens, order, rank)
    groups, per_group = (-(-tokens // group), group // order) if group else (1, blocks)
    signed = x.double() if signs is None else x.double() * reference_signs(tokens, signs).to(x.device)
    extended = torch.nn.functional.pad(signed, (0, 0, 0, groups * per_group * order - tokens))
    v = walsh_reference(order)[:rank].to(x.device) @ extended.view(-1, order, channels)
    v = v.view(groups, per_group * rank, channels)
    amax = v.abs().amax((1,) if scale == "channel" else (1, 2), keepdim=True)
    amax = torch.where(amax < 1e-30, 1e-30, amax)
    t = (v * (qmax(bits) / amax)).view(-1, channels)[: blocks * rank].t()
    t = torch.nn.functional.pad(t, (0, kept - blocks * rank))
    if rounding == "nearest":
        q = t.round()
    else:
        assert seed is not None and rounding == "stochastic"
        u = [reference_uniform(i, seed) for i in range(channels * kept)]
        q = (t + torch.tensor(u, dtype=torch.float64).view(channels, kept)).floor()
    scales = (amax * scale_factor(bits, normaliser(order, rank, signs is not None))).view(groups, -1)
    return q.clamp(-qmax(bits), qmax(bits)), scales, _sums(x.double(), summed_tokens(order, rank, group), sums)


def _sums(x: Tensor, span: int, wanted: bool) -> Tensor:
    """Partial sums of the tokens [S, C]; S is 0 where they are not wanted."""
    if not wanted:
        return x.new_empty((0, x.shape[1]))
    parts = -(-x.shape[0] // span)
    extended = torch.nn.functional.pad(x, (0, 0, 0, parts * span - x.shape[0]))
    return extended.reshape(parts, span, -1).sum(1)


def compress(
    x: Tensor,
    seed: Tensor | None,
    order: int,
    rank: int,
    bits: int,
    channelwise: bool,
    rounding: str,
    group: int,
    carrier: str,
    signs: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What ``cpu`` and the weight's kernel share. q is a transposed view: its memory keeps x's order of axes."""
    tokens, channels = x.shape
    kept = padded_kept(tokens, order, rank)
    per_group = group // order if group else 1
    multiple = math.lcm(ALIGNMENT // math.gcd(ALIGNMENT, rank), per_group)
    x = x if signs is None else x * token_signs(tokens, signs)
    v = token_transform(x, order, rank, multiple)
    chunks = -(-tokens // (order * multiple))  # not read from v's shape: symbolic sizes stay products
    groups, per_group = (chunks * (multiple // per_group), per_group) if group else (1, chunks * multiple)
    rows = groups * per_group * rank
    v = v.reshape(groups, per_group * rank, channels)
    amax = v.abs().amax((1,) if channelwise else (1, 2), keepdim=True)
    factor, dequantise = scales(amax, bits, normaliser(order, rank, signs is not None), rounding)
    index = torch.arange(rows, dtype=torch.int32, device=x.device)[:, None]
    index = index + (torch.arange(channels, dtype=torch.int32, device=x.device) * kept)[None, :]
    offset = dither(v, index.reshape(groups, per_group * rank, channels), seed, rounding)
    q = round_to_integer(v * factor, offset, qmax(bits)).to(carrier_dtype(carrier))
    dequantise = dequantise.reshape(groups, channels if channelwise else 1)
    return q.reshape(rows, channels)[:kept].t(), dequantise[: -(-tokens // group)] if group else dequantise


def cpu(
    x: Tensor,
    seed: Tensor | None,
    order: int,
    rank: int,
    bits: int,
    scale: str,
    rounding: str,
    group: int,
    sums: bool = False,
    signs: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator in functional PyTorch; same arguments and results as ``torch.ops.hadamard.compress_tokens``."""
    if x.shape[0] == 0 or x.shape[1] == 0:
        q, empty, added = fake(x, seed, order, rank, bits, scale, rounding, group, sums)
        return q.zero_(), empty.zero_(), added.zero_()
    q, scales = compress(x, seed, order, rank, bits, scale == "channel", rounding, group, "int8", signs)
    return q, scales, _sums(x.float(), summed_tokens(order, rank, group), sums)


def cuda(
    x: Tensor,
    seed: Tensor | None,
    order: int,
    rank: int,
    bits: int,
    scale: str,
    rounding: str,
    group: int,
    sums: bool = False,
    signs: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator on CUDA tensors: ``triton_both.py`` where it knows the groups, else ``triton_tokens.py``."""
    settings = (order, rank, bits, group)
    results: tuple[Tensor, Tensor, Tensor]
    if group and scale == "channel" and triton_bodies("both").serves(x, (), settings):
        results = triton_bodies("both").compress_tokens(x, seed, *settings, rounding, sums, signs)
    else:
        inside = sums and not group  # that kernel adds up spans of its own
        compressed = triton_bodies("tokens").compress_tokens
        results = compressed(x, seed, order, rank, bits, scale, rounding, group, inside, signs)
        if sums and group:
            results = (*results[:2], _sums(x.float(), group, sums))
    return results


def native(
    x: Tensor,
    seed: Tensor | None,
    order: int,
    rank: int,
    bits: int,
    scale: str,
    rounding: str,
    group: int,
    sums: bool = False,
    signs: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator on CPU tensors (``cpp_transform.py``)."""
    from . import cpp_transform

    inside = sums and not group  # where tokens share scales in groups, the compiled code adds nothing up
    compressed = cpp_transform.compress_tokens
    q, scales, added = compressed(x, seed, order, rank, bits, scale, rounding, group, inside, signs)
    return q, scales, _sums(x.float(), group, sums) if sums and group else added


def fake(
    x: Tensor,
    seed: Tensor | None,
    order: int,
    rank: int,
    bits: int,
    scale: str,
    rounding: str,
    group: int,
    sums: bool = False,
    signs: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes: q int8 [C, Lp], scale float32 [G, C] (``"channel"``) or [G, 1] (``"tensor"``), sums float32 [S, C]."""
    tokens, channels = x.shape
    groups = -(-tokens // group) if group else 1
    q = x.new_empty((channels, padded_kept(tokens, order, rank)), dtype=torch.int8)
    scales = x.new_empty((groups, channels if scale == "channel" else 1), dtype=torch.float32)
    parts = -(-tokens // summed_tokens(order, rank, group)) if sums else 0
    return q, scales, x.new_empty((parts, channels), dtype=torch.float32)


def traffic(tokens: Expression, channels: Expression, order: int, rank: int, itemsize: int, group: int = 0) -> Traffic:
    """One write of rank/order of the elements in int8; one read where a group's scale is known after one pass.

    Args:
        tokens, channels: of x.
        order, rank: of the transform.
        itemsize: bytes of one element of x.
        group: tokens per scale; 0 needs the largest magnitude of all tokens first: a second read.
    """
    kept = padded(ceil_div(tokens, order) * rank)
    groups = ceil_div(tokens, group) if group else 1
    reads = 1 if group else 2
    return Traffic(
        "compress_tokens",
        reads * tokens * channels * itemsize,
        channels * kept + SCALE_BYTES * groups * channels,
        channels * kept * (2 * order + 10),
        "vector",
    )


KERNEL = register(Kernel("compress_tokens", SCHEMA, reference, cpu, fake, traffic), cuda, native)
