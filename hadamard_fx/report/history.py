"""The reports of every graph compiled in this process, cache hits included.

A report is stored beside torch's own compile cache, so that a second process that compiles from that cache, where no
pass runs, still has it.
"""

from __future__ import annotations

import platform
import warnings
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from hadamard_fx import compat
from hadamard_fx.passes.manager import Pipeline

from . import store
from .report import Report
from .roofline import roofline_of

_REPORTS: list[Report] = []


def reports() -> tuple[Report, ...]:
    """The reports of this process, oldest first."""
    return tuple(_REPORTS)


def clear() -> None:
    """Forget them; the stored ones stay."""
    _REPORTS.clear()


def record(key: str, pipeline: Pipeline, *, quiet: bool = False) -> Report | None:
    """Append the report of a compilation: a new one where the passes ran, the stored one on a hit of torch's cache.

    Args:
        key: names the compilation in every process.
        pipeline: after the compilation.
        quiet: leave what the report warns of to the caller.
    """
    name = f"graph {len(_REPORTS)}"
    if pipeline.plan is None:
        report = store.load(_folder(), key)
        if report is None:
            warnings.warn(
                "hadamard: the graph came from torch's compile cache, but no report is stored for it; "
                "run once with TORCHINDUCTOR_FORCE_DISABLE_CACHES=1 to see it again",
                stacklevel=2,
            )
            return None
        report = replace(report, name=name, from_cache=True)
    else:
        report = _report(name, pipeline)
        store.save(_folder(), key, report)
    for message in () if quiet else report.warnings:
        warnings.warn(f"hadamard: {message}", stacklevel=2)
    _REPORTS.append(report)
    compat.trace_artifact("hadamard_fx_report", lambda: report.to_json(indent=1))  # a trace wants short lines
    return report


def _folder() -> Path:
    return Path(compat.cache_dir()) / "hadamard_fx" / "reports"


def _report(name: str, pipeline: Pipeline) -> Report:
    plan = pipeline.plan
    assert plan is not None
    unmatched = pipeline.policy.unmatched_error({d.gemm.layer for d in plan.decisions}) if plan.decisions else None
    saved, exact = pipeline.saved, pipeline.saved_exact
    return Report(
        plan=plan,
        name=name,
        versions=_versions(),
        device=_device(plan.decisions[0].gemm.device if plan.decisions else "cpu"),
        saved_before=None if exact is None else sum(tensor.bytes for tensor in exact),
        saved_after=None if exact is None else sum(tensor.bytes for tensor in saved),
        saved=tuple((tensor.node, tensor.bytes, tensor.layer) for tensor in saved),
        fusions=pipeline.fusions,
        passes=pipeline.records,
        roofline=roofline_of(plan, pipeline.profile),
        graphs=pipeline.graphs,
        from_cache=False,
        warnings=(*pipeline.warnings, *(() if unmatched is None else (str(unmatched),))),
    )


def _versions() -> dict[str, str]:
    return {
        "hadamard_fx": _version("hadamard-fx"),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "python": platform.python_version(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _device(kind: str) -> str:
    if kind == "cuda":
        return torch.cuda.get_device_name()
    return f"{kind}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
