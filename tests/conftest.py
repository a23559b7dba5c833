"""No test sees what ``hadamard-fx tune`` measured on the machine that it runs on."""

from __future__ import annotations

import os
import tempfile

NOTHING_MEASURED = tempfile.TemporaryDirectory(prefix="hadamard-fx-tests-")  # removed with the interpreter
os.environ["HADAMARD_FX_CONFIG_DIR"] = NOTHING_MEASURED.name
