"""Cache keys: what a pass or a scheme of one's own would do differently must change them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import hadamard_fx
from hadamard_fx import backend
from hadamard_fx.cost_model.device_profile import profile_for
from hadamard_fx.passes.identity import Uncacheable, value_identity
from hadamard_fx.passes.manager import Pipeline
from hadamard_fx.passes.registry import register_pass
from hadamard_fx.plan import Hadamard, Plan, Role

Load = Callable[[Path | str], ModuleType]

SOURCE = """
import hadamard_fx

def helper(plan):
    return plan  # {}

@hadamard_fx.register_pass
class FromFile(hadamard_fx.Pass):
    count: int = 1
    where: object = None

    def decide(self, plan, joint):
        return helper(plan)
"""


class Nothing(hadamard_fx.Pass):
    where: Any = None

    def decide(self, plan: Plan, joint: Any) -> Plan:
        return plan


def pipeline(**passes: Any) -> Pipeline:
    named = {name.replace("_", "-"): fields for name, fields in passes.items()}
    policy = hadamard_fx.Policy.resolve({"profile": "hot", "passes": named}, environ={}, directory="/")
    return Pipeline(policy, profile_for("cpu"), ())


def key(**passes: Any) -> str:
    """The cache key; there must be one."""
    made = pipeline(**passes)
    hooks = backend._hooks(made)
    assert not made.identity.unknown
    uuid = hooks["joint_custom_pre_pass"].uuid()
    assert uuid is not None and hooks["custom_partitioner_fn"].uuid()[0] == uuid[0]
    return str(uuid[0])


def test_the_key_follows_registration_options_and_source(load: Load, tmp_path: Path) -> None:
    def written(comment: str) -> None:
        (tmp_path / "own_pass.py").write_text(SOURCE.format(comment))
        load(tmp_path / "own_pass.py")

    keys = [key()]
    written("a")
    keys += [key(), key(from_file={"count": 2}), key(from_file=False)]
    written("another")  # beside the class, not in it
    keys.append(key())
    assert len(set(keys)) == 5
    written("a")
    assert key() == keys[1], "the same source gives the same key"


def test_the_key_follows_the_order() -> None:
    class A(Nothing):
        pass

    class B(Nothing):
        pass

    register_pass(A)
    register_pass(B)
    first = pipeline().identity.digest
    register_pass(A, after="b")
    assert pipeline().identity.digest != first


def test_the_key_follows_an_instance() -> None:
    register_pass(Nothing((1, 2)))
    first = key()
    register_pass(Nothing((1, 3)))
    assert key() != first


def named(layer: str) -> bool:
    return layer == "0"


def closure(value: int) -> Callable[[str], bool]:
    return lambda layer: layer == str(value)


def inner(value: int) -> Callable[[str], bool]:
    def matches(layer: str) -> bool:
        return layer == str(value)

    return matches


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (lambda layer: True, "holds a lambda"),
        (closure(3), "holds a lambda"),
        (inner(3), "uses variables of an enclosing function"),
        (object(), "an object without an identity"),
        (["x", {"y": lambda: 0}], "holds a lambda"),
    ],
)
def test_values_without_an_identity(value: Any, why: str) -> None:
    with pytest.raises(Uncacheable, match=why):
        value_identity(value)
    register_pass(Nothing(value))
    made = pipeline()
    assert all(hook.uuid() is None for hook in backend._hooks(made).values())
    (told,) = made.warnings
    assert "pass 'nothing'" in told and why in told and "nothing is cached" in told


def test_values_with_one() -> None:
    values = [
        1,
        True,
        1.0,
        "1",
        b"1",
        (1,),
        [1],
        {1: 2},
        {1},
        Role.FORWARD,
        Hadamard(),
        Hadamard(bits=8),
        named,
        int,
        torch.half,
    ]
    found = [value_identity(value) for value in values]
    assert len(set(found)) == len(values)
    assert value_identity({"a": 1, "b": 2}) == value_identity({"b": 2, "a": 1})


def test_a_class_without_source_disables_caching() -> None:
    names: dict[str, Any] = {"hadamard_fx": hadamard_fx}
    exec("@hadamard_fx.register_pass\nclass Typed(hadamard_fx.Pass):\n def decide(self, p, j): return p", names)
    made = pipeline()
    assert backend._hooks(made)["joint_custom_pre_pass"].uuid() is None
    assert "pass 'typed' has no source that could be read" in made.warnings[0]


def test_a_class_that_uses_an_enclosing_function_disables_caching() -> None:
    hidden = object()

    class Hides(Nothing):
        def decide(self, plan: Plan, joint: Any) -> Plan:
            assert hidden
            return plan

    register_pass(Hides)
    assert "pass 'hides' uses hidden of an enclosing function in decide" in pipeline().warnings[0]


def test_super_is_no_hidden_variable() -> None:
    class Calls(Nothing):
        def decide(self, plan: Plan, joint: Any) -> Plan:
            return super().decide(plan, joint)

    register_pass(Calls)
    assert not pipeline().warnings


def test_schemes_of_ones_own_are_in_the_key(load: Load) -> None:
    before = key()
    load("luq.py")
    assert key() != before


def test_a_dump_needs_the_passes_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HADAMARD_FX_DUMP", str(tmp_path))
    made = pipeline()
    assert backend._hooks(made)["joint_custom_pre_pass"].uuid() is None and not made.warnings


def test_caches_end_to_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, load: Load) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    load("keep_ends_exact.py")
    register_pass(Nothing)
    x = torch.randn(40, 32)

    def compiled(**passes: Any) -> tuple[bool, int, list[str]]:
        """(from the cache, rewritten products, warnings)"""
        torch._dynamo.reset()
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 48), nn.GELU(), nn.Linear(48, 16))
        options = {"profile": "hot", "passes": {name.replace("_", "-"): fields for name, fields in passes.items()}}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.compile(module, backend=hadamard_fx.hadamard, options=options)(x).square().mean().backward()
        told = [str(w.message) for w in caught if str(w.message).startswith("hadamard:")]
        report = hadamard_fx.reports()[-1]
        assert report.warnings == tuple(message.removeprefix("hadamard: ") for message in told)
        assert [r.name for r in report.passes].count("nothing") == 1, "a hit has the records of the first compilation"
        return report.from_cache, len(report.plan.rewrites()), told

    assert compiled() == (False, 2, [])
    assert compiled() == (True, 2, [])
    assert compiled(keep_ends_exact={"count": 0})[:2] == (False, 5)
    assert compiled(keep_ends_exact=False)[:2] == (False, 5)
    assert compiled() == (True, 2, [])
    register_pass(Nothing(lambda layer: True))
    for _ in range(2):
        cached, rewritten, told = compiled()
        assert (cached, rewritten) == (False, 2)
        assert len(told) == 1 and "holds a lambda" in told[0]
