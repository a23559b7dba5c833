"""``Pass``: what the manager runs, and what you derive from to write one of your own (``docs/writing-a-pass.md``).

A pass has one effect, the one of the three methods that it defines:

- ``decide``: Plan ⇒ Plan, between ``choose`` and ``rewrite``. It changes what is done to which product.
- ``rewrite``: edits the joint graph in place, between ``rewrite`` and ``partition``.
- ``observe``: looks at the graph and the plan and returns facts, anywhere behind ``choose``.

Never two of them: whoever reads a report, or a dump, must be able to tell from a pass's name alone what it can have
touched. The manager holds every pass to its effect and checks the laws behind it.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, dataclass_transform

from hadamard_fx.errors import PassDefinitionError
from hadamard_fx.plan import Plan

from .joint_graph import JointGraph

__all__ = ["STAGES", "Effect", "Pass", "location"]

STAGES = ("find", "choose", "rewrite", "partition", "producers", "fuse")
"""The stages of this project, in their order: what ``after`` and ``before`` may name besides other passes.

find: products of the joint graph. choose: a scheme for each. rewrite: the graph follows. partition: forward and
backward graph. producers, fuse: on each half, what the quantising kernels shall evaluate, and their fusion."""


class Effect(enum.StrEnum):
    """What a pass may change."""

    OBSERVES = "observes"
    DECIDES = "decides"
    REWRITES = "rewrites"


_METHODS = {"decide": Effect.DECIDES, "rewrite": Effect.REWRITES, "observe": Effect.OBSERVES}
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass_transform(frozen_default=True)
@dataclass(frozen=True)
class Pass:
    """Base of every pass. A subclass is a frozen dataclass whether or not it says so; its fields are its options.

    Attributes:
        name: what options, reports and other passes call it; by default the class's name, ``keep-ends-exact`` for
            ``KeepEndsExact``.
        requires: passes that must be active, and run before this one.
        after, before: stages and passes that it runs after and before, where they are active.
    """

    name: ClassVar[str] = ""
    requires: ClassVar[tuple[str, ...]] = ()
    after: ClassVar[tuple[str, ...]] = ()
    before: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).lower().strip("_").replace("_", "-")
        dataclass(frozen=True)(cls)  # a field that is only a class attribute would be no option: nobody could set it

    def decide(self, plan: Plan, joint: JointGraph) -> Plan:
        """The plan with other schemes.

        A decision whose scheme differs is refined for the device, checked for legality and priced by the manager, and
        says in the report which pass changed it: ``dataclasses.replace(decision, scheme=…, reason=…)`` is enough.

        Args:
            plan: one decision per product, in graph order.
            joint: the graph, not to be changed.
        """
        raise NotImplementedError

    def rewrite(self, joint: JointGraph, plan: Plan) -> None:
        """Edit ``joint.graph`` in place.

        Every new node needs ``meta["val"]`` (``GraphEditor`` sees to it), and results keep their shapes and dtypes. No
        matrix product may be added: it would have no decision.
        """
        raise NotImplementedError

    def observe(self, joint: JointGraph, plan: Plan) -> Mapping[str, Any]:
        """Facts for the report, as JSON. Behind ``partition`` it runs on the forward and on the backward graph."""
        raise NotImplementedError

    def options(self) -> dict[str, Any]:
        """The fields, for a report: as JSON, or as text where JSON has no word for a value."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        options: dict[str, Any] = json.loads(json.dumps(given, default=str))
        return options

    @classmethod
    def effect(cls) -> Effect:
        """The one effect of this pass.

        Raises:
            PassDefinitionError: it defines none of the three methods, or more than one, or has no usable name.
        """
        defined = [name for name in _METHODS if getattr(cls, name) is not getattr(Pass, name)]
        if len(defined) != 1:
            found = " and ".join(defined) or "none of them"
            raise PassDefinitionError(
                f"pass {cls.name!r} ({location(cls)}) must define one of decide, rewrite and observe, it defines "
                f"{found}; make two passes of it where it has two effects"
            )
        if not _NAME.fullmatch(cls.name):
            raise PassDefinitionError(
                f"pass name {cls.name!r} ({location(cls)}): use lower-case words joined by -, 'keep-ends-exact'"
            )
        return _METHODS[defined[0]]


def location(kind: type) -> str:
    """``"my_passes.py:12"`` of a class, or its qualified name where the source is not at hand."""
    try:
        file, line = inspect.getsourcefile(kind), inspect.getsourcelines(kind)[1]
    except (OSError, TypeError):
        return f"{kind.__module__}.{kind.__qualname__}"
    return f"{str(file).rsplit('/', 1)[-1]}:{line}"
