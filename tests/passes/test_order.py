"""The order of passes: what constraints ask for, and how contradictions are told."""

from __future__ import annotations

from typing import Any

import pytest

from hadamard_fx.errors import PassOrderError
from hadamard_fx.passes.base import STAGES, Pass
from hadamard_fx.passes.order import Placed, in_order, unknown_neighbours


class Decides(Pass):
    def decide(self, plan: Any, joint: Any) -> Any:
        return plan


class Edits(Pass):
    def rewrite(self, joint: Any, plan: Any) -> None:
        pass


class Looks(Pass):
    def observe(self, joint: Any, plan: Any) -> dict[str, Any]:
        return {}


def placed(name: str, kind: type[Pass] = Decides, **constraints: tuple[str, ...]) -> Placed:
    return Placed(type(name, (kind,), {"name": name, "__module__": __name__})(), **constraints)


def test_the_stages_alone() -> None:
    assert in_order([]) == STAGES


def test_each_effect_has_its_place() -> None:
    order = in_order([placed("c", Looks), placed("b", Edits), placed("a")])
    assert order == ("find", "choose", "c", "a", "rewrite", "b", "partition", "producers", "fuse")


def test_registration_breaks_ties_and_constraints_break_registration() -> None:
    assert in_order([placed("b"), placed("a")])[2:4] == ("b", "a")
    assert in_order([placed("b", after=("a",)), placed("a")])[2:4] == ("a", "b")
    assert in_order([placed("b"), placed("a", before=("b",))])[2:4] == ("a", "b")
    assert in_order([placed("b", requires=("a",)), placed("a")])[2:4] == ("a", "b")


def test_an_observer_may_stand_behind_the_last_stage() -> None:
    assert in_order([placed("look", Looks, after=("fuse",))])[-1] == "look"


def test_a_cycle_is_named_with_who_asked_for_what() -> None:
    with pytest.raises(PassOrderError) as raised:
        in_order([placed("a", after=("b",)), placed("b", after=("c",)), placed("c", after=("a",)), placed("d")])
    first, *reasons, cure = str(raised.value).splitlines()
    cycle = first.split(": ")[1].split(" → ")
    assert cycle[0] == cycle[-1] and sorted(cycle[1:]) == ["a", "b", "c"]
    assert sorted(line.split(": ")[1] for line in reasons) == [
        "'a' is to run after 'b'",
        "'b' is to run after 'c'",
        "'c' is to run after 'a'",
    ]
    assert "'d'" not in str(raised.value) and "Take one of these" in cure


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        (placed("a", after=("rewrite",)), "it decides, which nobody hears after 'rewrite'"),
        (placed("a", Edits, after=("fuse",)), "which 'partition' splits"),
        (placed("a", Looks, before=("find",)), "it observes a plan, which 'choose' makes"),
    ],
)
def test_a_place_where_the_effect_is_none_is_a_cycle_with_a_reason(entry: Placed, why: str) -> None:
    with pytest.raises(PassOrderError, match=why):
        in_order([entry])


def test_what_is_required_must_be_there() -> None:
    with pytest.raises(PassOrderError, match="'b' requires 'keep', which nobody registered; did you mean 'keeps'"):
        in_order([placed("keeps"), placed("b", requires=("keep",))])
    with pytest.raises(PassOrderError, match="'b' requires 'keep', which is switched off"):
        in_order([placed("b", requires=("keep",))], known=["keep"])


def test_neighbours_that_are_not_there_are_no_error_but_told() -> None:
    entry = placed("a", after=("chose",), before=("rewrite",))
    assert "a" in in_order([entry])
    (told,) = unknown_neighbours([entry], [])
    assert "'chose', which is no stage" in told and "did you mean 'choose'?" in told
    assert not list(unknown_neighbours([placed("a", after=("off",))], ["off"]))
