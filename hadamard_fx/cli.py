"""``hadamard-fx``: reports and devices from a terminal.

What is for machines goes to standard output (``--json``), what is for people to standard error. Exit codes: 0, 1 for a
failure, 2 for a wrong call (arguments, options, a factory that is none).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from rich.console import Console

from . import report_command
from .devices import Device, devices
from .errors import FactoryError, HadamardError, OptionError
from .factory import load_factory, make
from .policy import DEFAULTS, PROFILES
from .report.save import save_as
from .report.text import WIDTH

__all__ = ["main"]

_TABLES = tuple(key for key in DEFAULTS if key in ("grad_input", "grad_weight", "inductor"))
"""Options of which ``-o KEY.FIELD=VALUE`` sets one field. Not the overrides: their keys are patterns full of dots."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. ``--help``, ``--version`` and wrong arguments raise ``SystemExit``."""
    arguments = _parser().parse_args(argv)
    people = Console(stderr=True, width=None if sys.stderr.isatty() else WIDTH, emoji=False)
    try:
        code: int = arguments.run(arguments, people)
        return code
    except (OptionError, FactoryError) as error:
        return _fail(people, error, 2)
    except HadamardError as error:
        return _fail(people, error, 1)


def _fail(people: Console, error: Exception, code: int) -> int:
    people.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hadamard-fx", description="Shows what torch.compile(..., backend='hadamard') does with a model."
    )
    parser.add_argument("--version", action="version", version=f"hadamard-fx {_version()}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    explain = commands.add_parser(
        "explain",
        help="report every decision that is taken for a model",
        description="Trace a model once and report every decision; nothing is trained, no code is generated.",
    )
    explain.add_argument(
        "target",
        metavar="MODULE:FACTORY",
        help="a callable that returns (model, inputs) or (model, inputs, loss); "
        "MODULE is found as `python -m` finds it, the working directory included",
    )
    explain.add_argument("--profile", help=f"one of {', '.join(PROFILES)}, or one that MODULE registers")
    explain.add_argument("--details", action="store_true", help="also list every product and every rejected scheme")
    explain.add_argument(
        "-o",
        "--option",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="an option of the backend, VALUE as JSON or plain text; -o grad_weight.rank=4 sets one field",
    )
    explain.add_argument(
        "--html",
        metavar="FILE.html",
        type=report_command.html_file,
        help="write one page with pictures instead of the text",
    )
    explain.add_argument("--measure", action="store_true", help="also time every product over a few steps")
    explain.set_defaults(run=_explain)
    shown = report_command.add_command(commands)
    found = commands.add_parser("devices", help="list the devices at hand and the profiles that price them")
    found.set_defaults(run=_devices)
    tuned = commands.add_parser(
        "tune",
        help="measure this machine, and price with what was found from now on",
        description="Measure bandwidth, products and launches of a device (well under three minutes), show how well "
        "they predict other kernels, and keep them as this device's profile.",
    )
    tuned.add_argument("--device", choices=("cpu", "cuda"), help="what is measured; CUDA where there is one")
    what = tuned.add_mutually_exclusive_group()
    what.add_argument("--show", action="store_true", help="show the profile that is in use, measure nothing")
    what.add_argument(
        "--forget", action="store_true", help="remove what was measured: the bundled profiles count again"
    )
    tuned.set_defaults(run=_tune)
    for command in (explain, shown, found, tuned):
        command.add_argument("--json", action="store_true", help="JSON on standard output instead of text")
    return parser


def _version() -> str:
    try:
        return version("hadamard-fx")
    except PackageNotFoundError:
        return "(not installed)"


def _explain(arguments: argparse.Namespace, people: Console) -> int:
    from .report.explain import explain

    options = read_options(arguments.option)
    if arguments.profile is not None:
        options["profile"] = arguments.profile
    factory = load_factory(arguments.target)
    model, inputs, loss = make(factory, arguments.target)
    try:
        wanted = {"graphs": bool(arguments.html), "measure": arguments.measure}
        explanation = explain(model, loss=loss, options=options, **wanted)(*inputs)
    except HadamardError:
        raise
    except Exception as error:  # whatever the user's model raises on its own inputs
        return _fail(
            people, HadamardError(f"{arguments.target} failed on its inputs: {type(error).__name__}: {error}"), 1
        )
    if arguments.json:
        print(explanation.to_json())
    if arguments.html:
        people.print(
            f"wrote {save_as(arguments.html, html=explanation.to_html)}", markup=False, highlight=False, soft_wrap=True
        )
    for report in () if arguments.json or arguments.html else explanation.reports:
        people.print(report.render(details=arguments.details), "", markup=False, highlight=False)
    if not explanation.reports:
        people.print(f"{arguments.target}: no graph was compiled, so there is nothing to report")
        return 1
    return 0


def read_options(assignments: Sequence[str]) -> dict[str, Any]:
    """``["profile=hot", "grad_weight.rank=4"]`` as ``{"profile": "hot", "grad_weight": {"rank": 4}}``.

    Raises:
        OptionError: no ``=``, or a field and the whole of one option at once.
    """
    options: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        head, _, field = key.strip().partition(".")
        if not equals or not head:
            raise OptionError(f"-o {assignment}: expected KEY=VALUE, for instance -o profile=hot")
        if not (field and head in _TABLES):
            options[key.strip()] = _value(text)
        elif isinstance(options.setdefault(head, {}), dict):
            options[head][field] = _value(text)
        else:
            raise OptionError(f"-o {assignment}: {head} already has the value {options[head]!r}")
    return options


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _tune(arguments: argparse.Namespace, people: Console) -> int:
    from .tune import run

    return run(arguments, people)


def _devices(arguments: argparse.Namespace, people: Console) -> int:
    found = devices()
    if arguments.json:
        print(json.dumps([device.as_dict() for device in found], indent=2))
    else:
        people.print(Device.table(found))
    return 0
