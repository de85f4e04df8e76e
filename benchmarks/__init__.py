"""Benchmarks against PyTorch and `transformers` on a CPU: one command a table, see README.md."""
