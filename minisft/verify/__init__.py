"""Gradient checks, checks of kernels and compiled loops, and bugs planted to be found."""
