"""What a scheme must know to be chosen and rewritten: one ``SchemeRule`` per scheme, one file each in
``passes/schemes``.

A new scheme is one new file there: a frozen dataclass derived from ``Scheme`` and a rule that is registered for it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.fx as fx

from hadamard_fx.cost_model.device_profile import DeviceProfile
from hadamard_fx.cost_model.work import Sizes, Work, seconds_of, sizes_of
from hadamard_fx.errors import SchemeError
from hadamard_fx.kernels.library import load
from hadamard_fx.plan import Cost, Gemm, Role, Scheme, Size

from .convolutions import CONVOLUTION
from .editing import GraphEditor
from .joint_graph import value


class SchemeRule(ABC):
    """Legality, price and rewrite of one scheme."""

    scheme: ClassVar[type[Scheme]]
    roles: ClassVar[frozenset[Role]]

    def refine(self, scheme: Any, gemm: Gemm, profile: DeviceProfile) -> Scheme:
        """Fill in what the user left to the device."""
        refined: Scheme = scheme
        return refined

    def illegal(self, scheme: Any, gemm: Gemm) -> str:
        """Why the scheme may not compute this product; ``""`` when it may."""
        return "" if gemm.role in self.roles else f"{scheme.kind} does not apply to a product of role {gemm.role.value}"

    def least_contracted(self, scheme: Any) -> int:
        """The shortest contraction, K, that ``illegal`` allows; 0 where it does not ask for its length."""
        return 0

    def note(self, scheme: Any, gemm: Gemm) -> str:
        """What a person should know of the choice, for its reason; ``""`` for nothing."""
        return ""

    def relatives(self, scheme: Any) -> tuple[Scheme, ...]:
        """What a calibration measures beside the scheme, for ``calibrated`` to choose among."""
        return ()

    def calibrated(self, scheme: Any, gemm: Gemm, error: Callable[[Scheme], float | None]) -> tuple[Scheme, str]:
        """The scheme as a calibration fits it to the layer, and why; ``""`` where it is left as it is.

        Args:
            error: relative error of a scheme for this product, None where it is not known.
        """
        found: Scheme = scheme
        return found, ""

    def variants(self, scheme: Any, gemm: Gemm, profile: DeviceProfile) -> tuple[Scheme, ...]:
        """What the price may choose among where the user left something to the device, the most exact one first."""
        return (self.refine(scheme, gemm, profile),)

    def works(self, scheme: Any, gemm: Gemm, sizes: Sizes) -> tuple[Work, ...]:
        """Every launch behind the product, and what it shares with others; empty where ``price`` says all.

        Args:
            sizes: of the product, numbers or symbols.
        """
        return ()

    def price(self, scheme: Any, gemm: Gemm, profile: DeviceProfile, sharing: int) -> Cost:
        """Predicted seconds and saved bytes; ``sharing`` products have the saved operand in common and split its
        cost. By default the sum of ``works``; a rule must define one of the two.

        Raises:
            SchemeError: the rule defines neither.
        """
        works = self.works(scheme, gemm, sizes_of(gemm))
        if not works:
            raise SchemeError(f"the rule of scheme {scheme.kind!r} prices nothing; define price or works")
        return cost_of(works, profile, sharing)

    @abstractmethod
    def rewrite(self, scheme: Any, node: fx.Node, editor: GraphEditor) -> fx.Node:
        """Build the new product in front of ``node`` and return it; the caller replaces the uses."""


def is_of_saved(work: Work) -> bool:
    """It makes, or keeps, the operand that lives between forward and backward."""
    return isinstance(work.shared, tuple) and bool(work.shared[0] == "saved")


def cost_of(works: tuple[Work, ...], profile: DeviceProfile, sharing: int) -> Cost:
    """Their sum; ``sharing`` products split what they do for the saved operand."""
    kept = [work for work in works if is_of_saved(work)]
    own = seconds_of([work for work in works if work not in kept], profile)
    saved = sum(int(work.kept) for work in kept) // sharing
    return Cost(own + seconds_of(kept, profile) / sharing, saved)


RULES: dict[type[Scheme], SchemeRule] = {}


def register_rule(rule: type[SchemeRule]) -> type[SchemeRule]:
    """Class decorator: make a scheme known to the chooser and to the rewrite."""
    if rule.scheme in RULES:
        raise SchemeError(f"two rules for scheme {rule.scheme.kind!r}")
    RULES[rule.scheme] = rule()
    return rule


@functools.cache
def load_rules() -> dict[type[Scheme], SchemeRule]:
    """Import every file of ``passes/schemes`` once."""
    folder = Path(__file__).resolve().parent / "schemes"
    for module in pkgutil.iter_modules([str(folder)]):
        importlib.import_module(f"{__package__}.schemes.{module.name}")
    return RULES


def rule_of(scheme: Scheme) -> SchemeRule:
    """The rule of a scheme.

    Raises:
        SchemeError: nobody registered one.
    """
    rule = load_rules().get(type(scheme))
    if rule is None:
        raise SchemeError(f"scheme {scheme.kind!r} has no rule; decorate one with register_rule")
    return rule


_ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
QUANTISABLE = ("float32", "bfloat16", "float16")


def itemsize(gemm: Gemm) -> int:
    """Bytes of one element of the operands."""
    return _ITEMSIZE.get(gemm.dtype, 4)


def dtype_of(gemm: Gemm) -> torch.dtype:
    """Of the operands."""
    dtype: torch.dtype = getattr(torch, gemm.dtype)
    return dtype


def why_not_quantised(gemm: Gemm) -> str:
    """What keeps a product from the integer kernels, ``""`` when nothing does."""
    if gemm.batch != Size(1):
        return "a batched product of a parameter is left alone"
    if gemm.op == "bmm":
        return "a batched product is left alone"
    if gemm.op not in (CONVOLUTION, "mm", *(("addmm",) if gemm.role is Role.FORWARD else ())):
        return f"a {gemm.op} is left alone" if CONVOLUTION in gemm.op else f"{gemm.op} is left alone"
    if 0 in (gemm.M.hint, gemm.N.hint, gemm.K.hint):
        return "an empty product"
    if gemm.device == "cuda" and importlib.util.find_spec("triton") is None:
        return "the kernels need Triton on cuda, which is not installed"
    return "" if gemm.device in ("cpu", "cuda") else f"there are no kernels for device type {gemm.device}"


def product_of_codes(
    editor: GraphEditor,
    node: fx.Node,
    left: tuple[fx.Node, ...],
    right: tuple[fx.Node, ...],
    group: int,
    *,
    bias: fx.Node | None = None,
    backward: bool = True,
) -> fx.Node:
    """The quantised product of two (integers, scales) pairs, in the dtype of the product that it replaces."""
    arguments = (left[0], right[0], left[1], right[1], group, value(node).dtype, bias)
    return editor.call(load()["quantized_mm"].op, arguments, node, backward=backward)
