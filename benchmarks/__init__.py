"""Measurements; each is one command: python -m benchmarks.NAME. The list is in README.md."""

import minisft  # noqa: F401  before NumPy: its OpenBLAS reads once what this sets
