"""Measurements, one file per question; ``results`` holds what was measured and on what.

In: the options of ``ladle bench``. Out: rows on the terminal and, where asked, a CSV with hardware and versions.
"""
