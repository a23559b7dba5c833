"""Reports for tests of their views: one of many products, with whatever a user's model may call its layers."""

from __future__ import annotations

from hadamard_fx.fusion import Fusion
from hadamard_fx.pass_record import PassRecord
from hadamard_fx.passes.graph_record import GraphRecord, NodeRecord
from hadamard_fx.plan import Candidate, Cost, Decision, Gemm, Plan, Role, Size
from hadamard_fx.report import Report
from hadamard_fx.report.measure import Measured
from hadamard_fx.report.roofline import Roofline
from hadamard_fx.scheme import Exact, Hadamard, LowRank

HOSTILE = "blocks.0.</script><img src=x onerror=alert(1)>&\"'"
_CHOICE = {Role.FORWARD: Exact(), Role.GRAD_INPUT: Hadamard(), Role.GRAD_WEIGHT: LowRank()}


def decision(index: int, layer: str) -> Decision:
    role = list(_CHOICE)[index % 3]
    scheme = _CHOICE[role]
    sizes = Size(64 + index), Size(256, "s0" if index == 4 else ""), Size(1024)
    gemm = Gemm(f"mm_{index}", role, layer, *sizes, dtype="float32", device="cpu", left="x", right="w", source="m.py:1")
    exact = Cost(1e-3 + index * 1e-6, 4096 if role is Role.GRAD_WEIGHT else 0, 0.0)
    cost = exact if isinstance(scheme, Exact) else Cost(5e-4, exact.saved_bytes // 8, 0.02)
    rejected = (Candidate(Exact(), "predicted slower <than> the choice", exact), Candidate(Hadamard(bits=8), "illegal"))
    return Decision(gemm, scheme, cost, exact, f"reason {index}", rejected if gemm.role is not Role.FORWARD else ())


def report_of(products: int = 12, *, hostile: bool = True) -> Report:
    """A report of so many products, in layers of three, with everything that a report can hold."""
    name = HOSTILE if hostile else "blocks.0.fc"
    decisions = tuple(decision(i, name if i < 3 else f"blocks.{i // 3}.fc") for i in range(products))
    nodes = (NodeRecord("x", "placeholder", (), "float32[64, 256]"), NodeRecord("w", "placeholder", ()))
    before = (*nodes, *(NodeRecord(d.gemm.node, "aten.mm", ("x", "w"), "float32[64, 256]") for d in decisions))
    made = [NodeRecord(f"q_{d.gemm.node}", "hadamard.quantized_mm", ("x", "w"), "", d.gemm.node) for d in decisions]
    return Report(
        plan=Plan(decisions, "cpu_vnni", settings=(("profile", ("hot", "options")), ("forward", (None, "default")))),
        name="graph 0",
        versions={"torch": "2.13.0"},
        device="cpu, 2 threads",
        saved_before=1 << 20,
        saved_after=1 << 18,
        saved=(("x", 4096, "blocks.1.fc"),),
        fusions=(Fusion("blocks.1.fc", "g_y", "n", ("mul",), ("rows",), 512), Fusion("", "x", "m", reason="alone")),
        passes=(
            PassRecord("find", "observes", "joint", 1e-3, facts={"products": products}),
            PassRecord("mine", "decides", "joint", 2e-3, "4 decisions", builtin=False, options={"k": 1}),
            PassRecord("fuse", "rewrites", "backward", 1e-3),
        ),
        roofline=Roofline(28e9, {"float32": 160e9, "int8": 820e9}, tuple((d.gemm.node, 4e5, 2e5) for d in decisions)),
        graphs=GraphRecord(before, (*nodes, *made)),
        measured=Measured(tuple((d.gemm.node, 3e-3) for d in decisions[1:]), (("quantize_both", 1e-3),)),
        warnings=("a <warning>",),
    )
