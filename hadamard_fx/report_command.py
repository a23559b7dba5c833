"""``hadamard-fx report``: show a report that was written before, or what differs between two."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from typing import Any

from rich.console import Console

from .errors import ReportError
from .report.diff import compare_all
from .report.page import page
from .report.reading import read_reports
from .report.save import save_as

__all__ = ["add_command", "html_file"]


def html_file(path: str) -> str:
    """An argument that names a page, refused before anything is traced for it."""
    if not path.lower().endswith(".html"):
        raise argparse.ArgumentTypeError(f"{path!r} must end in .html")
    return path


def add_command(commands: Any) -> argparse.ArgumentParser:
    """Declare the command among the subparsers of ``hadamard-fx``."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "report",
        help="show a report from its JSON, or what differs between two",
        description="Show reports that Report.save or `hadamard-fx explain --json` wrote; nothing is compiled.",
    )
    parser.add_argument("files", metavar="FILE.json", nargs="+", help="one file to show, two with --diff")
    parser.add_argument("--diff", action="store_true", help="what differs from the first file to the second")
    parser.add_argument("--exit-code", action="store_true", help="with --diff: exit with 1 where anything differs")
    parser.add_argument("--details", action="store_true", help="also list every product and every rejected scheme")
    parser.add_argument("--html", metavar="FILE.html", type=html_file, help="write the page, show no text")
    parser.add_argument(
        "--import",
        metavar="MODULE",
        action="append",
        default=[],
        dest="modules",
        help="import a module that declares schemes of your own first",
    )
    parser.set_defaults(run=_run, refuse=parser.error)
    return parser


def _run(arguments: argparse.Namespace, people: Console) -> int:
    wanted = 2 if arguments.diff else 1
    if len(arguments.files) != wanted:
        arguments.refuse(f"expected {wanted} file{'s' * (wanted > 1)}, got {len(arguments.files)}")
    if arguments.exit_code and not arguments.diff:
        arguments.refuse("--exit-code needs --diff")
    if arguments.html and (arguments.diff or arguments.json):
        arguments.refuse("--html goes with neither --diff nor --json")
    for module in arguments.modules:
        _import(module)
    found = [read_reports(path) for path in arguments.files]
    if not arguments.diff:
        return _show(arguments, found[0], people)
    differences = compare_all(*found)
    if arguments.json:
        print(json.dumps([difference.to_json() for difference in differences], indent=2, ensure_ascii=False))
    else:
        for difference in differences:
            people.print(difference, markup=False, highlight=False, soft_wrap=True)
    return int(arguments.exit_code and any(differences))


def _show(arguments: argparse.Namespace, reports: tuple[Any, ...], people: Console) -> int:
    if not reports:
        people.print(f"{arguments.files[0]} holds no report: no graph was compiled", markup=False, soft_wrap=True)
        return 1
    if arguments.html:
        path = save_as(arguments.html, html=lambda: page(reports))
        people.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
    elif arguments.json:
        print(json.dumps([report.as_dict() for report in reports], indent=2, ensure_ascii=False))
    else:
        for report in reports:
            people.print(report.render(details=arguments.details), "", markup=False, highlight=False)
    return 0


def _import(module: str) -> None:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        importlib.import_module(module)
    except Exception as error:
        raise ReportError(f"--import {module}: {type(error).__name__}: {error}") from error
