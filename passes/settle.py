"""Settle a plan that somebody's pass changed: each other scheme is refined, priced, and signed with the pass's name."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hadamard_fx.cost_model.device_profile import DeviceProfile
from hadamard_fx.plan import Candidate, Decision, Plan, Role

from .rule import rule_of
from .unfolding import price_of

__all__ = ["settle"]


def settle(before: Plan, after: Plan, name: str, profile: DeviceProfile) -> Plan:
    """``after`` with honest decisions: the pass says which scheme, the scheme's rule says what that costs.

    Legality is not judged here but by the laws, which run behind every pass.

    Args:
        before, after: around the pass; decisions are matched by the product's node.
        name: of the pass.
    """
    known = {decision.gemm.node: decision for decision in before.decisions}
    sharing = Counter(d.gemm.saved for d in after.decisions if d.gemm.role is Role.GRAD_WEIGHT)
    settled = []
    for decision in after.decisions:
        former = known.get(decision.gemm.node)
        if former is None:
            settled.append(decision)  # a law refuses it
        elif former.scheme == decision.scheme:
            signed = former.reason if decision.reason == former.reason else f"pass {name!r}: {decision.reason}"
            settled.append(replace(former, reason=signed))
        else:
            settled.append(_settle(former, decision, name, profile, max(sharing[decision.gemm.saved], 1)))
    return replace(after, decisions=tuple(settled))


def _settle(former: Decision, decision: Decision, name: str, profile: DeviceProfile, sharing: int) -> Decision:
    rule = rule_of(decision.scheme)
    scheme = rule.refine(decision.scheme, decision.gemm, profile)
    told = decision.reason if decision.reason != former.reason else f"it takes {scheme}"
    reason = f"pass {name!r}: {told}"
    # An illegal scheme may not be able to name a price; the law behind this pass refuses it.
    cost = (
        decision.exact_cost
        if rule.illegal(scheme, decision.gemm)
        else price_of(scheme, decision.gemm, profile, sharing)
    )
    others = tuple(c for c in former.rejected if c.scheme != scheme)
    passed_over = Candidate(former.scheme, f"pass {name!r} took another: {told}", former.cost)
    return replace(decision, scheme=scheme, cost=cost, reason=reason, rejected=(*others, passed_over))
