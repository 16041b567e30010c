"""Runs in which one caller means harm: what it holds up, what it gets beyond its limits, and what it learns.

In: a running server, with the keys of two callers where that matters. Out: one row of figures for each run.
"""
