"""``python -m hadamard_fx`` is ``hadamard-fx``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
