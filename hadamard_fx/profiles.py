"""Profiles: named answers to "which schemes may a backward product use?"; and the reading of a scheme from options."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .errors import OptionError, SchemeError
from .low_pass import LowPass
from .plan import Role
from .published_code import ClippedGradInput, ClippedGradWeight
from .saturating import SaturatingForward, SaturatingGradInput, SaturatingGradWeight
from .scheme import Exact, Hadamard, LowRank, Scheme
from .straight_through import StraightThrough

__all__ = ["PROFILES", "Profile", "did_you_mean", "parse_scheme", "register_profile"]

FORWARD = Hadamard(bits=8, rounding="nearest")
"""The forward in 8 bits: rounded to nearest, so that it draws no random number and can be computed again."""

DEFAULT_SCHEMES: dict[Role, Scheme] = {
    Role.FORWARD: FORWARD,
    Role.GRAD_INPUT: Hadamard(),
    Role.GRAD_WEIGHT: LowRank(),
}
"""What is meant where a user writes some fields and no kind."""

NAMES: dict[str, dict[Role, Scheme]] = {
    "exact": dict.fromkeys(DEFAULT_SCHEMES, Exact()),
    "hadamard8": {Role.FORWARD: FORWARD},
}
"""Schemes that a user may write as one word."""

_ONLY_FOR: dict[type[Scheme], tuple[Role, ...]] = {
    Hadamard: (Role.FORWARD, Role.GRAD_INPUT),
    LowRank: (Role.GRAD_WEIGHT,),
    LowPass: (Role.GRAD_INPUT, Role.GRAD_WEIGHT),
    ClippedGradInput: (Role.GRAD_INPUT,),
    ClippedGradWeight: (Role.GRAD_WEIGHT,),
    SaturatingForward: (Role.FORWARD,),
    SaturatingGradInput: (Role.GRAD_INPUT,),
    SaturatingGradWeight: (Role.GRAD_WEIGHT,),
    StraightThrough: (Role.FORWARD, Role.GRAD_INPUT),
}
"""Low rank is legal along the tokens only, hence for the weight's gradient only (law 3 of the algorithms).

A scheme that is not listed may be asked for anywhere; its rule says where it is legal."""


@dataclass(frozen=True)
class Profile:
    """Which schemes the three products of a linear layer may use.

    Attributes:
        name: what ``options={"profile": name}`` says.
        summary: one sentence for a person.
        grad_input, grad_weight: the schemes, in the order of preference.
        forward: likewise; exact unless a profile says otherwise.
        priced: True: the cheapest of them is taken, by the cost model; exact is always among the candidates.
            False: the first that is legal for the product is taken, whatever it costs.
    """

    NAME: ClassVar[re.Pattern[str]] = re.compile(r"[a-z][a-z0-9_-]*")

    name: str
    summary: str
    grad_input: tuple[Scheme, ...]
    grad_weight: tuple[Scheme, ...]
    priced: bool
    forward: tuple[Scheme, ...] = (Exact(),)

    def __post_init__(self) -> None:
        if not self.NAME.fullmatch(self.name):
            raise OptionError(f"profile name {self.name!r}: use lower-case letters, digits, - and _, a letter first")
        for role in DEFAULT_SCHEMES:
            if not self.schemes(role):
                raise OptionError(f"profile {self.name!r} has no scheme for {role}; leave it alone with (Exact(),)")
            for scheme in self.schemes(role):
                _check_role(scheme, role, f"profile {self.name!r}")

    def schemes(self, role: Role) -> tuple[Scheme, ...]:
        """The schemes for ``role``; products that are not a linear layer's stay exact."""
        known = {Role.FORWARD: self.forward, Role.GRAD_INPUT: self.grad_input, Role.GRAD_WEIGHT: self.grad_weight}
        return known.get(role, (Exact(),))

    def with_bits(self, bits: int) -> Profile:
        """The same with that many bits in every scheme that has a number of them.

        Raises:
            OptionError: no scheme has one, or prices choose it. SchemeError: a scheme refuses the number.
        """
        if self.priced:
            raise OptionError(
                f"option 'bits': profile {self.name!r} chooses the bits by price; ask for another profile"
            )
        made = {str(role): tuple(_with_bits(s, bits) for s in self.schemes(role)) for role in DEFAULT_SCHEMES}
        if not any(hasattr(scheme, "bits") for schemes in made.values() for scheme in schemes):
            raise OptionError(f"option 'bits': no scheme of profile {self.name!r} has a number of bits")
        return dataclasses.replace(self, **made)  # type: ignore[arg-type]

    def to_json(self) -> dict[str, Any]:
        """All that decides, for hashes and reports."""
        products = {str(role): [s.to_json() for s in self.schemes(role)] for role in DEFAULT_SCHEMES}
        return {"name": self.name, "summary": self.summary, "priced": self.priced, **products}


def _with_bits(scheme: Scheme, bits: int) -> Scheme:
    changed: Scheme = dataclasses.replace(scheme, bits=bits) if hasattr(scheme, "bits") else scheme  # type: ignore[type-var]
    return changed


PROFILES: dict[str, Profile] = {}


def register_profile(profile: Profile) -> Profile:
    """Make ``options={"profile": profile.name}`` known; returns the profile.

    Raises:
        OptionError: another profile has that name.
    """
    known = PROFILES.setdefault(profile.name, profile)
    if known != profile:
        raise OptionError(f"profile {profile.name!r} is already registered with other schemes; choose another name")
    return profile


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``" did you mean 'x'? known: 'x', 'y'"``, to be put behind a message."""
    names = sorted(known)
    folded = {known_name.lower(): known_name for known_name in names}
    near = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.5)
    hint = f" did you mean {folded[near[0]]!r}?" if near else ""
    return f"{hint} known: {', '.join(repr(n) for n in names)}"


def parse_scheme(value: object, role: Role, where: str) -> Scheme:
    """The scheme that a user wrote for ``role``: ``"exact"``, a mapping of fields, or a ``Scheme``.

    Args:
        value: fields left out keep their defaults; ``"kind"`` may be left out.
        where: what to call the value in messages, ``"option 'grad_input'"``.

    Raises:
        SchemeError: neither of these, an unknown field, a wrong type, or parameters that the scheme refuses.
    """
    if isinstance(value, Scheme):
        return _check_role(value, role, where)
    default = DEFAULT_SCHEMES[role]
    words = {name: schemes[role] for name, schemes in NAMES.items() if role in schemes}
    if isinstance(value, str) and value in words:
        return words[value]
    if not isinstance(value, Mapping):
        word = " or ".join(f'"{name}"' for name in words)
        example = f'{{"bits": 8}} ({default.kind})'
        raise SchemeError(f"{where}: expected {word} or a table of fields such as {example}, got {value!r}")
    kind = value.get("kind", default.kind)
    known = _schemes_for(role)
    if not isinstance(kind, str) or kind not in known:
        raise SchemeError(f"{where}: {kind!r} is no scheme for {role};{did_you_mean(str(kind), known)}")
    fields = {key: entry for key, entry in value.items() if key != "kind"}
    _check_fields(known[kind], fields, where)
    try:
        if kind != default.kind:
            return _check_role(Scheme.from_json({"kind": kind, **fields}), role, where)
        return _check_role(dataclasses.replace(default, **fields), role, where)  # type: ignore[type-var]
    except SchemeError as error:
        raise SchemeError(str(error) if where in str(error) else f"{where}: {error}") from None


def _schemes_for(role: Role) -> dict[str, type[Scheme]]:
    return {kind: scheme for kind, scheme in Scheme.kinds.items() if role in _ONLY_FOR.get(scheme, (role,))}


def _check_role(scheme: Scheme, role: Role, where: str) -> Scheme:
    if role is Role.FORWARD and getattr(scheme, "rounding", "nearest") != "nearest":
        raise SchemeError(f"{where}: the forward must round to nearest: it would draw other numbers when recomputed")
    if scheme.kind in _schemes_for(role):
        return scheme
    legal = ", ".join(sorted(_schemes_for(role)))
    raise SchemeError(f"{where}: {scheme.kind!r} is no scheme for {role}; legal: {legal}")


def _check_fields(scheme: type[Scheme], fields: Mapping[Any, object], where: str) -> None:
    types = {field.name: str(field.type) for field in dataclasses.fields(scheme)}  # type: ignore[arg-type]
    for name, value in fields.items():
        if name not in types:
            raise SchemeError(f"{where}: {scheme.kind} has no field {name!r};{did_you_mean(str(name), types)}")
        kind = "None" if value is None else type(value).__name__  # not isinstance(): True is no number of bits
        if kind not in types[name].split(" | "):
            raise SchemeError(f"{where}: {name} must be of type {types[name]}, got {value!r} ({kind})")


# Equal prices: the first is taken. 8-bit integers cost what 4-bit ones in int8 cost, with a smaller error; 4 bits pay
# only on devices that carry them faster in FP8.
_FASTEST = (Exact(), Hadamard(bits=8), Hadamard(bits=4))
_AUTO = "the cost model decides, product by product; exact unless a gain is predicted"
_HOT = (
    "HOT (arXiv 2503.21261): 4-bit Hadamard g_x, 8-bit rank-8-of-16 g_w, compressed activations; g_w made unbiased by "
    "random signs, which grad_weight.signs = none leaves out, as published"
)
# Every sequency costs more time and keeps more; it is there for those who bound the error.
register_profile(Profile("auto", _AUTO, _FASTEST, (Exact(), LowRank(rank=16, signs="none"), LowRank()), priced=True))
register_profile(Profile("hot", _HOT, (Hadamard(),), (LowRank(),), priced=False))
_REPO = "HOT as its published code has it: blocks within one image, a triangle of rows, SAWB ranges for x and w"
register_profile(Profile("hot-repo", _REPO, (ClippedGradInput(),), (ClippedGradWeight(),), priced=False))
_HDQT = "HDQT as published (arXiv 2310.03675): 4-bit operands in all three products, 8-bit saturating accumulators"
_SATURATING = (SaturatingGradInput(),), (SaturatingGradWeight(),)
register_profile(Profile("hdqt", _HDQT, *_SATURATING, priced=False, forward=(SaturatingForward(),)))
_QORNN = "QORNN as published (arXiv 2402.04012): recurrent and input weights of 5 bits, straight-through gradients"
_ON_A_GRID = (StraightThrough(),)
register_profile(Profile("qornn", _QORNN, _ON_A_GRID, (Exact(),), priced=False, forward=_ON_A_GRID))
for _bits in (4, 8):
    _plain = {"bits": _bits, "alpha": 1.0, "accumulator_bits": 32}
    register_profile(
        Profile(
            f"int{_bits}",
            f"plain {_bits}-bit integers in all three products, one scale per tensor, no transform: a baseline",
            (SaturatingGradInput(**_plain, order=1),),  # type: ignore[arg-type]
            (SaturatingGradWeight(**_plain, order=1, input_rounding="nearest"),),  # type: ignore[arg-type]
            priced=False,
            forward=(SaturatingForward(**_plain),),  # type: ignore[arg-type]
        )
    )
register_profile(Profile("exact", "every product as the user wrote it", (Exact(),), (Exact(),), priced=False))
