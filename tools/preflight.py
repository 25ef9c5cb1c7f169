"""What a run will need on a TPU slice: python -m tools.preflight; see inset_jax.preflight."""

from __future__ import annotations

import sys

from inset_jax.preflight.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
