"""INSET on JAX: images generated from sentences that have images in them.

Importing the package is free of JAX; every room imports what it needs when it is entered.
"""

__version__ = "0.1.0"
