"""Gradient checks, checks of kernels and compiled loops, and planted bugs that test the checks."""
