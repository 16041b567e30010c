"""Coefficients and dials fitted to what a sweep measured.

In: the tables of a sweep. Out: surface.json and calibration.json beside the family's manifest.
"""
