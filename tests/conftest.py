"""No test sees what ``hadamard-fx tune`` measured on the machine that it runs on."""

from __future__ import annotations

import os
import tempfile

os.environ["HADAMARD_FX_CONFIG_DIR"] = tempfile.mkdtemp(prefix="hadamard-fx-tests-")
