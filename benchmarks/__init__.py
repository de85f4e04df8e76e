"""Measurements; each is one command: python -m benchmarks.NAME. The list is in README.md."""
