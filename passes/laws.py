"""What must hold between passes (algorithms, section 1; design, section 5). A violated law stops the compilation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.fx as fx

from hadamard_fx import compat
from hadamard_fx.errors import LawViolation
from hadamard_fx.kernels.library import NAMESPACE, load
from hadamard_fx.plan import Plan, Role
from hadamard_fx.scheme import LowRank

from .editing import PRODUCT
from .find_gemms import LEFT_OPERAND
from .find_recurrence import ALL_STEPS
from .joint_graph import JointGraph, source_line, strip_transpose, value
from .rule import rule_of


@dataclass(frozen=True)
class Offence:
    """Where a law is violated: a node of the graph, or the plan itself (``None``), and what was found."""

    node: fx.Node | None
    detail: str
    source: str = ""


@dataclass(frozen=True)
class Law:
    """One sentence and the check that enforces it."""

    sentence: str
    offences: Callable[[JointGraph, Plan | None], Iterator[Offence]]


def enforce(
    joint: JointGraph,
    plan: Plan | None,
    after: str,
    laws: tuple[Law, ...] = (),
    *,
    written: str = "",
    fresh: tuple[fx.Node, ...] = (),
) -> None:
    """Check every law, or only the given ones.

    Args:
        after: the pass that had just run.
        written: where it is written, ``""`` for a stage of this project.
        fresh: the nodes that it added: where somebody else wrote it, the values that they carry are computed again.

    Raises:
        LawViolation: names the law, the pass, the node and the user's source line.
    """
    for law in laws or LAWS:
        for offence in law.offences(joint, plan):
            raise _violation(law, after, offence, written)
    if written:
        for node in fresh:
            if isinstance(node.target, torch._ops.OpOverload) and (found := _wrong_value(node)):
                raise _violation(VALUES_MATCH, after, Offence(node, found), written)


def _violation(law: Law, after: str, offence: Offence, written: str) -> LawViolation:
    node = offence.node
    source = offence.source or (source_near(node) if node is not None else "")
    return LawViolation(law.sentence, after, node.name if node is not None else "", offence.detail, source, written)


def source_near(node: fx.Node) -> str:
    """The user's source line of a node or, where a pass made it, of the nearest node that it is made of."""
    seen = [node]
    for current in seen:
        if line := source_line(current):
            return line
        seen += [operand for operand in current.all_input_nodes if operand not in seen]
    return next((line for user in node.users if (line := source_line(user))), "")


def _well_formed(joint: JointGraph, plan: Plan | None) -> Iterator[Offence]:
    """fx's own check, with the node's name."""
    seen: set[fx.Node] = set()
    for node in joint.graph.nodes:
        for operand in node.all_input_nodes:
            if operand.graph is not joint.graph:
                yield Offence(node, f"it reads {operand.name}, a node of another graph")
            elif operand not in seen:
                yield Offence(node, f"it reads {operand.name}, which was erased or comes after it")
        seen.add(node)
    if len(joint.graph.find_nodes(op="output")) != 1:
        yield Offence(None, "a graph has exactly one output")
    try:
        joint.graph.lint()
    except RuntimeError as error:
        yield Offence(None, str(error))


def _calls(joint: JointGraph, name: str) -> Iterator[fx.Node]:
    return (node for node in joint.graph.nodes if node.target is load()[name].op)


def _one_decision_per_product(joint: JointGraph, plan: Plan | None) -> Iterator[Offence]:
    if plan is None:
        return
    counted = Counter(decision.gemm.node for decision in plan.decisions)
    for name, count in counted.items():
        if count != 1:
            yield Offence(None, f"{name} has {count} decisions")
    for node in joint.graph.nodes:
        if node.target in LEFT_OPERAND and node.name not in counted and node.meta.get(PRODUCT) not in counted:
            yield Offence(node, "a product without a decision")


def _node(joint: JointGraph, name: str) -> fx.Node | None:
    return next((node for node in joint.graph.nodes if node.name == name), None)


def _legal(joint: JointGraph, plan: Plan | None) -> Iterator[Offence]:
    for decision in plan.rewrites() if plan else ():
        gemm = decision.gemm
        reason = rule_of(decision.scheme).illegal(decision.scheme, gemm)
        if gemm.role is Role.FORWARD and getattr(decision.scheme, "rounding", "nearest") != "nearest":
            reason = reason or "a forward that is computed again would draw other numbers; round it to nearest"
        if reason:
            detail = f"{decision.scheme} for {gemm.node}, the {gemm.role} of {gemm.layer}: {reason}"
            yield Offence(_node(joint, gemm.node), detail, gemm.source)


def _low_rank_only_along_tokens(joint: JointGraph, plan: Plan | None) -> Iterator[Offence]:
    for decision in plan.decisions if plan else ():
        if isinstance(decision.scheme, LowRank) and decision.gemm.role is not Role.GRAD_WEIGHT:
            detail = f"{decision.gemm.node} is a {decision.gemm.role} product with scheme {decision.scheme}"
            yield Offence(_node(joint, decision.gemm.node), detail, decision.gemm.source)
    for node in _calls(joint, "compress_tokens"):  # the graph, whatever role the analysis gave the product
        if node.args[0] in joint.persistent:
            yield Offence(node, "it compresses a parameter or a buffer, whose axes hold no tokens")


def _scales_off_the_contracted_axis(joint: JointGraph, plan: Plan | None) -> Iterator[Offence]:
    for node in _calls(joint, "quantized_mm"):
        for codes, scale in ((node.args[0], node.args[2]), (node.args[1], node.args[3])):
            assert isinstance(codes, fx.Node) and isinstance(scale, fx.Node)
            rows, extent = value(codes).shape[0], value(scale).shape[-1]
            fits = compat.statically_known_true(extent == 1) or compat.statically_known_true(extent == rows)
            grouped = not compat.statically_known_true(value(scale).shape[0] == 1)
            if not fits or (grouped and not node.args[4]):
                yield Offence(node, f"scale {tuple(value(scale).shape)} for integers {tuple(value(codes).shape)}")
    for node in _calls(joint, "saturating_mm"):
        for scale in node.args[2:4]:
            assert isinstance(scale, fx.Node)
            if tuple(value(scale).shape) != (1, 1):
                yield Offence(node, f"scale {tuple(value(scale).shape)}: the sums of its tiles are not rescaled")


def _same_transform_on_both_sides(joint: JointGraph, plan: Plan | None) -> Iterator[Offence]:
    for node in (*_calls(joint, "quantized_mm"), *_calls(joint, "saturating_mm")):
        left, right = (_transform(operand) for operand in node.args[:2])
        if left != right:
            yield Offence(node, f"left operand has {left}, right operand {right}")


def _transform(operand: object) -> tuple[object, ...]:
    """(order, rank, or which rows) of the transform that made an operand's integers, and its seed of random signs."""
    assert isinstance(operand, fx.Node)
    operand = strip_transpose(operand)[0]
    assert isinstance(operand.args[0], fx.Node)
    made = operand.args[0]
    if made.target is load()["quantize_clipped"].op:
        return made.args[3], made.args[3]
    if made.target is load()["quantize_kept"].op:
        return made.args[2], made.args[2] if made.args[3] == "all" else made.args[3]
    if made.target is load()["quantize_weight"].op:
        return made.args[1], made.args[1]
    order = made.args[2]
    if made.target is load()["compress_tokens"].op:
        signs = compat.arguments(made)["signs"]
        return (order, made.args[3], signs) if signs is not None else (order, made.args[3])
    return order, order


def _values_match_fakes(joint: JointGraph, plan: Plan | None) -> Iterator[Offence]:
    for node in joint.graph.nodes:
        if node.op == "call_function" and "val" not in node.meta and not _returns_nothing(node):
            yield Offence(node, "meta['val'] is missing")
        elif getattr(node.target, "namespace", "") == NAMESPACE and (found := _wrong_value(node)):
            yield Offence(node, found)


def _returns_nothing(node: fx.Node) -> bool:
    """An assertion on a value, for instance."""
    return isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.returns


def _wrong_value(node: fx.Node) -> str:
    """How ``meta["val"]`` differs from what the op gives, ``""`` where it does not."""
    if "val" not in node.meta:
        return "" if _returns_nothing(node) else "meta['val'] is missing"
    arguments, named = fx.map_arg((node.args, node.kwargs), lambda operand: operand.meta["val"])
    with compat.fresh_fake_mode([*arguments, *named.values()]):
        fake = node.target(*arguments, **named)  # type: ignore[operator]
    if _shapes(fake) == _shapes(node.meta["val"]):
        return ""
    return f"meta['val'] is {_shapes(node.meta['val'])}, the op gives {_shapes(fake)}"


def _shapes(result: object) -> list[tuple[str, object]]:
    parts = list(result) if isinstance(result, list | tuple) else [result]
    return [(str(tuple(p.shape)), p.dtype) if isinstance(p, torch.Tensor) else ("", type(p)) for p in parts]


def _independent_draws(joint: JointGraph, plan: Plan | None) -> Iterator[Offence]:
    for node in joint.graph.nodes:
        if node.target is compat.seeds_op:
            drawn = Counter(user.args[2] for user in node.users if user.target is torch.ops.aten.select.int)
            for user in node.users:
                if user.target is torch.ops.aten.select.int and (drawn[user.args[2]] > 1 or len(user.users) > 1):
                    yield Offence(user, "two roundings share a random draw")


def _forward_untouched(joint: JointGraph, plan: Plan | None) -> Iterator[Offence]:
    """Without a quantised forward no op of ours may lie on the way to a result of the forward."""
    if any(decision.gemm.role is Role.FORWARD for decision in (plan.rewrites() if plan else ())):
        return
    made: set[fx.Node] = set()
    for node in joint.graph.nodes:
        ours = getattr(node.target, "namespace", "") == NAMESPACE and node.target not in ALL_STEPS
        if ours or any(operand in made for operand in node.all_input_nodes):
            made.add(node)
    (outputs,) = next(iter(reversed(joint.graph.nodes))).args
    for node in outputs if isinstance(outputs, (list, tuple)) else ():
        if isinstance(node, fx.Node) and node in made and node not in joint.tangent_closure:
            yield Offence(node, "a result of the forward depends on a quantised value")


VALUES_MATCH = Law("every node carries meta['val'], and it matches the op's fake result", _values_match_fakes)
"""The law that a partitioned graph can be held against: it does not say what the other half holds."""

WELL_FORMED = Law("the graph is well formed", _well_formed)

LAWS = (
    WELL_FORMED,  # the others walk the graph, so that they need this one
    Law("every product has exactly one decision", _one_decision_per_product),
    Law("low rank is taken along the tokens only", _low_rank_only_along_tokens),
    Law("a scheme is used only where its rule calls it legal", _legal),
    Law("scales vary only along axes that are not contracted", _scales_off_the_contracted_axis),
    Law("both operands carry the same transform along the contracted axis", _same_transform_on_both_sides),
    VALUES_MATCH,
    Law("every stochastic rounding has a random draw of its own", _independent_draws),
    Law("the forward is exact unless the plan quantises it", _forward_untouched),
)
