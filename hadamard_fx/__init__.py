"""hadamard-fx: low-precision training as compiler passes over torch.fx graphs.

``torch.compile(model, backend="hadamard")`` decides for every product of the backward whether the Hadamard domain pays
there, rewrites those products, and lets Inductor compile the rest.
"""

from .backend import hadamard
from .calibration import Recalibration, calibrate
from .cost_model.calibration import Calibration
from .errors import HadamardError
from .passes.base import Pass
from .passes.registry import register_pass
from .policy import Policy
from .report import Report
from .report.explain import Explanation, explain
from .report.history import reports

__all__ = [
    "Calibration",
    "Explanation",
    "HadamardError",
    "Pass",
    "Policy",
    "Recalibration",
    "Report",
    "calibrate",
    "explain",
    "hadamard",
    "register_pass",
    "reports",
]
