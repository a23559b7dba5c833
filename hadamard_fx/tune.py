"""``hadamard-fx tune``: measure this machine with a progress bar, show what was found, keep it."""

from __future__ import annotations

import argparse
import json

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .cost_model import tuned
from .cost_model.device_profile import DeviceProfile, bundled_profile, load_profile, profile_for
from .cost_model.tuning import STEPS, Tuning, measure
from .errors import DeviceError

__all__ = ["run"]


BUSY = 1.6
"""A typical prediction that is off by more than this factor."""


def run(arguments: argparse.Namespace, people: Console) -> int:
    """The command; returns the exit code.

    Raises:
        DeviceError: there is no such device, or the profile cannot be kept.
    """
    device_type = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    tuned.device_name(device_type)  # raises where there is none
    if arguments.forget:
        return _forget(device_type, people)
    if arguments.show:
        _show(profile_for(device_type), arguments, people)
        return 0
    found = _measure(device_type, people)
    path = tuned.save(device_type, found.data)
    _show(load_profile(path), arguments, people)
    if not arguments.json:
        people.print(_residuals(found))
        people.print(f"kept in {path}; from now on it prices graphs on this device", highlight=False, soft_wrap=True)
        if found.spread > BUSY:
            people.print(
                "these predictions are poor: is the machine busy? Measure again when it is idle", style="yellow"
            )
    return 0


def _measure(device_type: str, people: Console) -> Tuning:
    columns = (TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=people, transient=True) as progress:
        task = progress.add_task("", total=len(STEPS))

        def advance(step: str) -> None:
            progress.update(task, description=step, completed=STEPS.index(step))

        return measure(device_type, bundled_profile(device_type), advance)


def _forget(device_type: str, people: Console) -> int:
    path = tuned.forget(device_type)
    if path is None:
        raise DeviceError(
            f"nothing was measured on this {device_type} device: {tuned.path_of(device_type)} is not there"
        )
    people.print(f"removed {path}", highlight=False, soft_wrap=True)
    return 0


def _show(profile: DeviceProfile, arguments: argparse.Namespace, people: Console) -> None:
    """The figures of a profile with their sources."""
    figures = {
        "bandwidth": (f"{profile.bandwidth / 1e9:.4g} GB/s", profile.bandwidth),
        "launch": (f"{profile.launch * 1e6:.3g} us", profile.launch),
        **{unit: (f"{rate / 1e9:.4g} GOP/s", rate) for unit, rate in profile.rates.items()},
    }
    if arguments.json:
        values = {key: {"value": value, "source": profile.sources[key]} for key, (_, value) in figures.items()}
        print(json.dumps({"name": profile.name, **values}, indent=2, ensure_ascii=False))
        return
    sources = {profile.sources[key] for key in figures}
    table = Table(title=profile.name, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for header in ("figure", "value", *(("source",) if len(sources) > 1 else ())):
        table.add_column(header, overflow="fold")
    for key, (text, _) in figures.items():
        table.add_row(key, text, *((profile.sources[key],) if len(sources) > 1 else ()))
    people.print(table)
    if len(sources) == 1:
        people.print(*sources, highlight=False, soft_wrap=True)


def _residuals(found: Tuning) -> Table:
    """Kernels that no figure was taken from."""
    title = f"kernels that no figure was taken from: a typical prediction is off by {found.spread - 1:.0%}"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for header in ("kernel", "sizes", "predicted, ms", "measured, ms", "ratio"):
        table.add_column(header, justify="left" if header in ("kernel", "sizes") else "right")
    for residual in found.residuals:
        times = (f"{seconds * 1e3:.3g}" for seconds in (residual.predicted, residual.measured))
        table.add_row(residual.kernel, residual.sizes, *times, f"{residual.ratio:.2f}")
    return table
