"""One class per cause. Every message names the cause and the cure.

This module imports nothing of the project, so that every layer may raise these.
"""

from __future__ import annotations


class HadamardError(Exception):
    """Base of every error that hadamard-fx raises on purpose."""


class OptionError(HadamardError, ValueError):
    """An option is unknown, of the wrong type, or out of range (options, environment or ``hadamard.toml``)."""


class SchemeError(OptionError):
    """The parameters of a scheme contradict each other, for instance a rank above the order."""


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
    """

    def __init__(self, law: str, after: str, node: str, detail: str, source: str = "") -> None:
        self.law, self.after, self.node, self.detail, self.source = law, after, node, detail, source
        where = f"\n  node: {node}" if node else ""
        line = f"\n  your code: {source}" if source else ""
        super().__init__(
            f"after pass {after!r} the law “{law}” is violated: {detail}{where}{line}\n"
            f"  This is a defect of the pass, not of your model. Until it is mended, compile with "
            f'options={{"profile": "exact"}}.'
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


class ReportError(HadamardError, ValueError):
    """A report's JSON is not one of ours, or of a schema version that this release cannot read."""
