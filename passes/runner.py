"""Run one pass: hold it to its effect, check the laws behind it, time it, dump it, log it, record it.

The stages of this project and the passes of others go through the same function; somebody else's pass is not trusted,
so that its graph is compared before and after even where it says that it only looks.
"""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hadamard_fx.cost_model.device_profile import DeviceProfile
from hadamard_fx.errors import HadamardError, PassEffectError, PassFailure
from hadamard_fx.pass_record import PassRecord
from hadamard_fx.plan import Gemm, Plan

from .base import Effect, Pass, location
from .dump import Dump
from .find_producers import Site
from .joint_graph import JointGraph
from .laws import LAWS, VALUES_MATCH, WELL_FORMED, Law, enforce
from .settle import settle
from .snapshot import Snapshot, describe_change

__all__ = ["Runner", "State", "Step", "step_of"]

_LOG = logging.getLogger(__package__)
PART_LAWS = (WELL_FORMED, VALUES_MATCH)
"""The laws that one half of a partitioned graph can be held against."""


@dataclass
class State:
    """What passes work on.

    Attributes:
        joint: the graph at hand, with the facts about its inputs; made anew behind each pass that edits it.
        part: ``"joint"``, ``"inference"``, ``"forward"`` or ``"backward"``.
        plan: the decisions, once they are made.
        gemms: the products, once they are found.
        sites: what the quantising kernels shall evaluate, once it is found.
    """

    joint: JointGraph
    part: str
    plan: Plan | None = None
    gemms: tuple[Gemm, ...] = ()
    sites: tuple[Site, ...] = ()


@dataclass(frozen=True)
class Step:
    """A pass, made ready to run: a stage of ours, or one of somebody else's (``theirs``)."""

    name: str
    effect: Effect
    run: Callable[[State], Mapping[str, Any] | None]
    theirs: Pass | None = None


def step_of(run: Pass, profile: DeviceProfile) -> Step:
    """The step that calls the one method that a pass defines."""
    effect, name = run.effect(), run.name

    def decide(state: State) -> None:
        assert state.plan is not None
        made = run.decide(state.plan, state.joint)
        if not isinstance(made, Plan):
            raise PassEffectError(name, location(type(run)), f"decides and must return a Plan, it returned {made!r}")
        given = {decision.gemm for decision in state.plan.decisions}
        for gemm in (decision.gemm for decision in made.decisions if decision.gemm not in given):
            detail = "changed a product, or made one up: a decision is about its scheme only"
            raise PassEffectError(name, location(type(run)), detail, gemm.node, gemm.source)
        state.plan = settle(state.plan, made, name, profile)

    def rewrite(state: State) -> None:
        assert state.plan is not None
        run.rewrite(state.joint, state.plan)

    def observe(state: State) -> Mapping[str, Any]:
        assert state.plan is not None
        facts = run.observe(state.joint, state.plan)
        try:
            found: dict[str, Any] = json.loads(json.dumps(dict(facts)))
        except (TypeError, ValueError):
            raise PassEffectError(
                name, location(type(run)), f"observes and must return facts that JSON can hold, it returned {facts!r}"
            ) from None
        return found

    runs = {Effect.DECIDES: decide, Effect.REWRITES: rewrite, Effect.OBSERVES: observe}
    return Step(name, effect, runs[effect], run)


@dataclass
class Runner:
    """Runs steps one after the other.

    Attributes:
        records: of all that ran, in order.
        dump: where texts go, None: nowhere.
    """

    records: list[PassRecord] = field(default_factory=list)
    dump: Dump | None = None

    def start(self, state: State) -> None:
        """Dump the graph as it came."""
        if self.dump is not None:
            self.dump.write("start", state.part, state.joint.graph, state.plan)

    def run(self, step: Step, state: State) -> None:
        """Run a step and check what it left.

        Raises:
            LawViolation: it broke the graph or the plan. PassEffectError: it did what it may not.
            PassFailure: it raised.
        """
        before = Snapshot.of(state.joint.graph, state.plan, step.theirs is not None)
        began = time.perf_counter()
        try:
            facts = step.run(state) or {}
        except HadamardError:
            raise
        except Exception as error:
            if step.theirs is None:
                raise
            raise PassFailure(step.name, _raised_at(error, step.theirs), state.part, error) from error
        seconds = time.perf_counter() - began
        if step.effect is Effect.REWRITES:
            state.joint = JointGraph(state.joint.graph, state.joint.inputs)
        if step.theirs is not None:
            before.check(step.name, step.effect, location(type(step.theirs)), state.joint.graph, state.plan)
        change = describe_change(before, Snapshot.of(state.joint.graph, state.plan, False))
        if step.effect is not Effect.OBSERVES and (change or step.theirs is not None):
            self._enforce(step, state, before)
        self._tell(step, state, seconds, change, facts)

    def _enforce(self, step: Step, state: State, before: Snapshot) -> None:
        laws: tuple[Law, ...] = LAWS if state.part in ("joint", "inference") and state.plan else PART_LAWS
        if step.name == "fuse":
            laws = PART_LAWS  # what it makes of the whole graph's laws is one operator for several
        written = location(type(step.theirs)) if step.theirs is not None else ""
        enforce(state.joint, state.plan, step.name, laws, written=written, fresh=before.fresh(state.joint.graph))

    def _tell(self, step: Step, state: State, seconds: float, change: str, facts: Mapping[str, Any]) -> None:
        options = {} if step.theirs is None else step.theirs.options()
        record = PassRecord(
            step.name, step.effect.value, state.part, seconds, change, step.theirs is None, options, dict(facts)
        )
        self.records.append(record)
        _LOG.info("%s on the %s graph: %.1f ms%s", step.name, state.part, 1e3 * seconds, change and f", {change}")
        if facts:
            _LOG.debug("%s on the %s graph found %s", step.name, state.part, json.dumps(facts))
        if self.dump is not None:
            self.dump.write(step.name, state.part, state.joint.graph, state.plan)


def _raised_at(error: BaseException, run: Pass) -> str:
    """The innermost line of the pass's own file in a traceback, else the line of its class."""
    code = getattr(type(run), {"decides": "decide", "rewrites": "rewrite", "observes": "observe"}[run.effect()])
    own = code.__code__.co_filename
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == own]
    return f"{own.rsplit('/', 1)[-1]}:{lines[-1]}" if lines else location(type(run))
