"""MEMO, memory-efficient expandable model (Zhou et al. 2023, "A Model or 603 Exemplars", arXiv 2205.13218)."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..expandable import Expandable
from ..learner import register

__all__ = ["MEMO"]


@register
class MEMO(Expandable):
    """Shallow layers serve every task and learn on; every task has deep ones of its own, which begin as those before.

    The loss is DER's. Nothing rebalances the classifier afterwards, and the number of exemplars stays what the settings
    say: the bytes that MEMO spares against DER are not spent on more of them, as the paper does.
    """

    name = "MEMO"

    def parts(self, body: Any) -> tuple[nn.Module, nn.Module]:
        return body.shallow, body.deep
