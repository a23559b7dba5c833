"""The pages are true: Python blocks run, messages are the ones that are printed, links lead somewhere.

A block marked ``no-run`` is skipped. One marked ``file=PATH`` is an excerpt of that file. One marked ``raises`` must
raise, and the block below it holds the message, in which ``…`` stands for anything. The blocks of a page share their
names, from top to bottom.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from pathlib import Path

import pytest
import torch

from hadamard_fx.errors import HadamardError
from hadamard_fx.options import DEFAULTS, PRODUCTS
from hadamard_fx.passes.registry import PASSES
from hadamard_fx.passes.rule import load_rules
from hadamard_fx.policy import PROFILES
from hadamard_fx.profiles import DEFAULT_SCHEMES
from hadamard_fx.scheme import Scheme

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture
def clean(tmp_path, monkeypatch):
    """No settings of this machine, no schemes of examples; profiles, passes and schemes of a page are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    for name in [name for name in os.environ if name.startswith("HADAMARD_FX_")]:
        monkeypatch.delenv(name)
    tables = (PROFILES, PASSES, load_rules(), Scheme.kinds)
    known = [dict(table) for table in tables]
    for kind, scheme in known[-1].items():  # those that examples registered for other tests
        if not scheme.__module__.startswith("hadamard_fx."):
            del Scheme.kinds[kind], load_rules()[scheme]
    yield
    for table, entries in zip(tables, known, strict=True):
        table.clear()
        table.update(entries)
    torch._dynamo.reset()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
@pytest.mark.usefixtures("clean")
def test_python_blocks(page):
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    for place, (language, mark, code) in enumerate(blocks):
        if language != "python" or "no-run" in mark:
            continue
        if 'backend="hadamard"' in code and "hadamard" not in torch._dynamo.list_backends():
            pytest.skip("needs the installed package: torch finds the backend by its entry point")
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore", UserWarning)
            if "raises" not in mark:
                exec(compile(code, f"{page.name}, block {place}", "exec"), names)
                continue
            with pytest.raises(HadamardError) as caught:
                exec(compile(code, f"{page.name}, block {place}", "exec"), names)
        message = blocks[place + 1][2].strip()
        pattern = ".*".join(map(re.escape, message.split("…")))
        assert re.fullmatch(pattern, f"{type(caught.value).__name__}: {caught.value}", re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_excerpts_are_what_the_files_say(page):
    for _, mark, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        if (file := re.search(r"file=(\S+)", mark)) is not None:
            assert code in (ROOT / file[1]).read_text(encoding="utf-8"), f"{page.name} shows another {file[1]}"


def test_every_option_and_field_is_documented():
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    schemes = [
        scheme for profile in PROFILES.values() for role in PRODUCTS.values() for scheme in profile.schemes(role)
    ]
    fields = {name for scheme in (*DEFAULT_SCHEMES.values(), *schemes) for name in scheme.__dataclass_fields__}
    missing = [name for name in (*DEFAULTS, *fields, *PROFILES) if f"`{name}`" not in page]
    assert not missing


def test_every_error_is_documented():
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    kinds, names = [HadamardError], []
    while kinds:
        kind = kinds.pop()
        names += [kind.__name__] if kind.__module__ == "hadamard_fx.errors" else []
        kinds += kind.__subclasses__()
    assert not [name for name in names if name not in page]


def test_readme_has_room_for_the_numbers():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert page.index("<!-- numbers -->") < page.index("<!-- /numbers -->")
