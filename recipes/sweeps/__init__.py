"""Sweeps: answers of several methods at many preferences, measured.

In: a served family, prompts and rewards. Out: a folder with every answer (``store``), tables, plots and a summary.
"""
