"""One class per cause. Every message names the cause and the cure.

This module imports nothing of the project, so that every layer may raise these.
"""

from __future__ import annotations

import math


class HadamardError(Exception):
    """Base of every error that hadamard-fx raises on purpose."""


class OptionError(HadamardError, ValueError):
    """An option is unknown, of the wrong type, or out of range (options, environment or ``hadamard.toml``)."""


class SchemeError(OptionError):
    """The parameters of a scheme contradict each other, for instance a rank above the order."""


class BudgetError(HadamardError, ValueError):
    """No choice of schemes keeps as little for the backward as the memory budget asks for.

    Args:
        asked: the budget, a share of what exact keeps.
        least: the smallest share that any choice keeps.
        binding: what stands in the way, beside the schemes themselves: ``"max_error = 0.01"``; ``""`` for nothing.
    """

    def __init__(self, asked: float, least: float, binding: str = "") -> None:
        self.asked, self.least, self.binding = asked, least, binding
        self.nearest = math.ceil(least * 1000) / 1000
        cause = f"with {binding} every choice" if binding else "every choice"
        cure = f"raise or drop {binding}, or ask" if binding else "ask"
        super().__init__(
            f"memory_budget = {asked:g} cannot be kept: {cause} of schemes keeps at least {100 * least:.1f} % of the "
            f"bytes that exact keeps for the backward; {cure} for the nearest feasible value, "
            f'options={{"memory_budget": {self.nearest:g}}}'
        )


class OverrideError(OptionError):
    """An override names no product of the compiled graphs, or is no regular expression."""


class LawViolation(HadamardError, RuntimeError):
    """A pass left the graph or the plan in a state that a law forbids (design, section 5).

    Args:
        law: the law's own sentence.
        after: name of the pass that had just run.
        node: name of the offending fx node, or ``""`` when the plan itself is at fault.
        detail: what was found.
        source: the user's source line that the node stems from, when known.
        written: where the pass is written, ``"my_passes.py:12"``; ``""`` for a stage of this project.
    """

    def __init__(self, law: str, after: str, node: str, detail: str, source: str = "", written: str = "") -> None:
        self.law, self.after, self.node, self.detail, self.source = law, after, node, detail, source
        self.written = written
        where = f"\n  node: {node}" if node else ""
        line = f"\n  your code: {source}" if source else ""
        by = f"\n  the pass: {written}" if written else ""
        leave = f'{{"passes": {{"{after}": False}}}}' if written else '{"profile": "exact"}'
        super().__init__(
            f"after pass {after!r} the law “{law}” is violated: {detail}{where}{line}{by}\n"
            f"  This is a defect of the pass, not of your model. Until it is mended, compile with options={leave}."
        )


class PassDefinitionError(HadamardError, TypeError):
    """A class cannot be a pass: no single effect, a name that is taken, a field without a default."""


class PassLoadError(HadamardError, ImportError):
    """An entry point of the group ``hadamard_fx.passes`` does not load, or leads to no pass."""


class PassOrderError(HadamardError, ValueError):
    """The passes cannot be ordered: a cycle, or a required pass that is not active."""


class PassEffectError(HadamardError, RuntimeError):
    """A pass did something else than its effect: it decides and edited the graph, or returned no plan.

    Args:
        name: of the pass.
        written: where it is written, ``"my_passes.py:12"``.
        detail: what it did.
        node: the fx node that it did it to, ``""`` when there is none.
        source: the user's source line that the node stems from, when known.
    """

    def __init__(self, name: str, written: str, detail: str, node: str = "", source: str = "") -> None:
        self.name, self.written, self.detail, self.node, self.source = name, written, detail, node, source
        where = f"\n  node: {node}" if node else ""
        line = f"\n  your code: {source}" if source else ""
        super().__init__(
            f"pass {name!r} {detail}{where}{line}\n  the pass: {written}\n"
            f'  Mend the pass, or leave it out: options={{"passes": {{"{name}": False}}}}.'
        )


class PassFailure(HadamardError, RuntimeError):
    """A pass raised an exception.

    Args:
        name: of the pass.
        written: the line of the pass that raised, ``"my_passes.py:20"``.
        graph: what it ran on, ``"joint"``.
        cause: the original error.
    """

    def __init__(self, name: str, written: str, graph: str, cause: BaseException) -> None:
        self.name, self.written, self.graph, self.cause = name, written, graph, cause
        super().__init__(
            f"pass {name!r} failed on the {graph} graph: {type(cause).__name__}: {cause}\n  the pass: {written}\n"
            f'  Leave it out meanwhile: options={{"passes": {{"{name}": False}}}}.'
        )


class KernelError(HadamardError, RuntimeError):
    """A generated kernel does not compile or launch on this device.

    Args:
        kernel: name of the kernel.
        shape: the problem, for instance ``"M=50432 N=768 K=3072"``.
        cause: the original error.
    """

    def __init__(self, kernel: str, shape: str, cause: BaseException | str) -> None:
        self.kernel, self.shape, self.cause = kernel, shape, cause
        super().__init__(
            f"kernel {kernel!r} failed for {shape}: {cause}\n"
            f'  Meanwhile leave the layer exact: options={{"overrides": {{r"<layer name>": "exact"}}}} '
            f'(hadamard_fx.explain lists the layer names), or everything: options={{"profile": "exact"}}.'
        )


class DeviceError(HadamardError, RuntimeError):
    """The device cannot run what was asked of it (no Triton, no profile)."""


class FactoryError(HadamardError, ValueError):
    """``MODULE:FACTORY`` does not lead to a callable that returns ``(model, inputs[, loss])``."""


class CalibrationError(HadamardError, ValueError):
    """A calibration does not fit the model, its file is damaged or cannot be written, or a batch cannot be measured."""


class ReportError(HadamardError, ValueError):
    """A report's JSON is not one of ours, or of a schema version that this release cannot read."""
