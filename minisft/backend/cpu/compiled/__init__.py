"""Formulas as compiled loops for the CPU, with Numba (extra `fast`); one file a stem."""
