"""Formulas as compiled loops for the CPU; one file for each that has one. Needs the extra `fast`."""
