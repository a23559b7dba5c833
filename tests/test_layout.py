"""The house: which way imports point, what the wheel holds, and what must not be in any file."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("hadamard_fx", "kernels", "cost_model", "passes")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

WORDS = ("errors", "scheme", "plan", "fusion", "pass_record", "compat", "policy")
WORDS += ("low_pass", "options", "profiles", "published_code", "saturating", "sources", "files", "window")
WORDS += ("straight_through",)
LEVELS = {**dict.fromkeys(WORDS, 0), "orthogonal": 1, "kernels": 1, "cost_model": 2, "passes": 3}
"""Level of a module by its first name below hadamard_fx; all others (backend, report, cli, ...) are at the top, 4."""


def sources() -> Iterator[tuple[Path, str]]:
    """(file, dotted module name) of everything that is packaged; symbolic links are not followed."""
    for folder in FOLDERS:
        for where, names, files in os.walk(ROOT / folder):
            names[:] = [name for name in names if name != "__pycache__" and not (Path(where) / name).is_symlink()]
            for file in files:
                if file.endswith(".py"):
                    path = Path(where) / file
                    parts = path.relative_to(ROOT).with_suffix("").parts
                    yield path, ".".join(parts if parts[0] == "hadamard_fx" else ("hadamard_fx", *parts))


SOURCES = dict(sources())


def imports(path: Path, module: str) -> Iterator[str]:
    """Dotted names that a file imports, relative ones made absolute."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
            package = [part for part in package if part != "__init__"]
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            name = ".".join(part for part in (base, node.module or "") if part)
            yield from (f"{name}.{alias.name}" for alias in node.names)


def level(module: str) -> int:
    parts = module.split(".")
    return LEVELS.get(parts[1], 4) if len(parts) > 1 else 4


def test_there_is_something_to_check():
    assert len(SOURCES) > 20
    assert "hadamard_fx.kernels.library" in SOURCES.values()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    module = SOURCES[path]
    for name in imports(path, module):
        if name.startswith("hadamard_fx."):
            assert level(name) <= level(module), f"{module} must not import {name}: imports point towards the words"


@pytest.mark.parametrize("module", ["errors", "compat"])
def test_some_import_nothing_of_ours(module):
    names = imports(ROOT / "hadamard_fx" / f"{module}.py", f"hadamard_fx.{module}")
    assert not [name for name in names if name.startswith("hadamard_fx")]


def test_orthogonal_imports_only_itself_the_kernels_and_the_errors():
    own = [(path, module) for path, module in SOURCES.items() if module.startswith("hadamard_fx.orthogonal.")]
    assert len(own) > 2
    allowed = ("hadamard_fx.orthogonal", "hadamard_fx.kernels.", "hadamard_fx.errors.")
    for path, module in own:
        ours = [name for name in imports(path, module) if name.startswith("hadamard_fx.")]
        assert not [name for name in ours if not name.startswith(allowed)], f"{module} imports {ours}"


def test_no_folder_is_imported_from_the_top_level():
    for path, module in SOURCES.items():
        for name in imports(path, module):
            assert name.split(".")[0] not in FOLDERS[1:], f"{path}: write hadamard_fx.{name}"


def test_private_torch_only_in_compat():
    for path, module in SOURCES.items():
        private = [name for name in imports(path, module) if re.match(r"torch(\.\w+)*\._(?!_)", name)]
        assert not private or path.name == "compat.py", f"{path} imports {private}: name it in compat.py"


def test_third_party_imports_are_declared():
    declared = {re.split(r"[<>=;\[ ]", entry)[0] for entry in PROJECT["project"]["dependencies"]}
    free = {*sys.stdlib_module_names, "hadamard_fx", "triton", "functorch"}  # the latter two come with torch
    for path, module in SOURCES.items():
        missing = {name.split(".")[0] for name in imports(path, module)} - declared - free
        assert not missing, f"{path} imports {missing}, which pyproject.toml does not declare"


def test_every_folder_is_packaged():
    setuptools = PROJECT["tool"]["setuptools"]
    found = {path.parent.relative_to(ROOT).as_posix() for path in SOURCES}
    assert found == set(setuptools["package-dir"].values())
    assert set(setuptools["packages"]) == set(setuptools["package-dir"])
    for package, folder in setuptools["package-dir"].items():
        assert package.split(".")[-1] == folder.split("/")[-1]


@pytest.mark.parametrize("folder", FOLDERS[1:])
def test_links_for_uninstalled_runs(folder):
    link = ROOT / "hadamard_fx" / folder
    assert link.is_symlink()
    assert os.readlink(link) == f"../{folder}"
    assert not (ROOT / folder / "__init__.py").exists()


def test_folders_are_no_packages_outside_the_checkout(tmp_path):
    script = f"import importlib.util as u; print([u.find_spec(name) for name in {FOLDERS[1:]}])"
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environ, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[None, None, None]"


def test_wheel_holds_everything(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    tree = tmp_path / "tree"
    skip = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "benchmarks", "tests")
    shutil.copytree(ROOT, tree, symlinks=True, ignore=skip)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(tree)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("hadamard_fx-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = next(archive.read(name).decode() for name in names if name.endswith("entry_points.txt"))
    wanted = {module.replace(".", "/") + ".py" for module in SOURCES.values()}
    profiles = ROOT / "cost_model" / "profiles"
    wanted |= {f"hadamard_fx/cost_model/profiles/{path.name}" for path in profiles.glob("*.json")}
    wanted |= {"hadamard_fx/py.typed"}
    report = ROOT / "hadamard_fx" / "report"
    data = (*report.glob("web/*"), *report.glob("*.json"))
    wanted |= {path.relative_to(ROOT).as_posix() for path in data}
    assert {name for name in names if ".dist-info/" not in name} == wanted
    assert any(name.endswith("LICENSE") for name in names)
    assert "hadamard = hadamard_fx.backend:hadamard" in entry_points
    assert "hadamard-fx = hadamard_fx.cli:main" in entry_points


def test_no_path_of_a_machine_in_any_file():
    own = re.compile(r"(?<![\w.~>}-])/(?:work|root|home|opt|Users)/\w")
    kinds = {".py", ".md", ".toml", ".json", ".svg", ".txt", ".html", ".yml", ""}
    for where, names, files in os.walk(ROOT):
        names[:] = [name for name in names if name == ".ci" or not name.startswith((".", "__pycache__", "build"))]
        for path in (Path(where) / file for file in files):
            if path.suffix in kinds:
                text = path.read_text(encoding="utf-8", errors="ignore")
                assert not own.search(text), f"{path.relative_to(ROOT)} names a local path"
