"""Weights in and out of BAGEL's format: python -m tools.convert_weights --help."""

import sys

from inset_jax.convert import main

if __name__ == "__main__":
    sys.exit(main())
