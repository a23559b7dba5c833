"""Bytes kept between forward and backward by one transformer block, d = 256, 1024 tokens, float32, against Inductor.

    python benchmarks/saved_bytes.py [--device cpu|cuda] [--quick]

Counted on the tensors that the compiled code really saved: distinct storages, without the parameters. The block's input
needs a gradient, as inside a model; the bytes are given with that input (its maker may drop it otherwise) and without.
"""

from __future__ import annotations

import copy
import sys

import torch
from _common import arguments, ratio, record, warm_up
from _contenders import compile_with

from examples.saved_tensors import saved_bytes
from examples.vit import Block

CONTENDERS = ("inductor", "exact", "hot", "auto")


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    options = arguments(__doc__, argv, ("--batch", {"type": int, "default": 4, "help": "sequences of the 1024 tokens"}))
    dim, tokens = (64, 128) if options.quick else (256, 1024)
    torch.manual_seed(0)
    block = Block(dim, heads=4).to(options.device)
    x = torch.randn(options.batch, tokens // options.batch, dim, device=options.device, requires_grad=True)
    warm_up(options.device)
    with_input, without = {}, {}
    for contender in CONTENDERS:
        model = copy.deepcopy(block)
        out = compile_with(contender, model)(x)
        with_input[contender] = float(saved_bytes(out, model.parameters()))
        without[contender] = float(saved_bytes(out, [x, *model.parameters()]))
        out.sum().backward()
    share, share_without = ratio(with_input, "inductor"), ratio(without, "inductor")
    rows = [
        {
            "contender": c,
            "saved, KiB": with_input[c] / 1024,
            "share of Inductor's": share[c],
            "without the input, KiB": without[c] / 1024,
            "share": share_without[c],
        }
        for c in CONTENDERS
    ]
    record("saved_bytes", options, rows, {"sizes": {"dim": dim, "tokens": tokens, "batch": options.batch}})
    return 0


if __name__ == "__main__":
    sys.exit(main())
