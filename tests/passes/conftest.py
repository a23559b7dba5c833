import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parent))
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Passes and schemes that a test registers are forgotten."""
    from hadamard_fx.passes.registry import PASSES
    from hadamard_fx.passes.rule import load_rules
    from hadamard_fx.plan import Scheme

    tables = (PASSES, load_rules(), Scheme.kinds)
    known = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, known, strict=True):
        table.clear()
        table.update(entries)


@pytest.fixture
def load() -> Iterator[Callable[[Path | str], ModuleType]]:
    """Import a file, one of ``examples`` or by its path, as if for the first time."""
    names = []

    def imported(file: Path | str) -> ModuleType:
        path = ROOT / "examples" / file if isinstance(file, str) else file
        spec = importlib.util.spec_from_file_location(f"loaded_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        names.append(module.__name__)
        sys.modules[module.__name__] = module
        spec.loader.exec_module(module)
        return module

    yield imported
    for name in names:
        sys.modules.pop(name, None)
