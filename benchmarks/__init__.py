"""Measurements; each is one command: python -m benchmarks.NAME. The list is in README.md."""

import minisft  # noqa: F401  before NumPy, as a command of it is: it says when OpenBLAS sleeps
