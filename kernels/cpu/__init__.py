"""Loops that numba compiles for a processor: decoder layers, draws, sums of weights, packed products.

In: numpy arrays and the descriptions of ``types``. Out: arrays, in place where a docstring says so. ``compiler`` owns
the folder of compiled code and the lock that lets one parallel loop run at a time.
"""
