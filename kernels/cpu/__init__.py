"""Loops that numba compiles for a processor: decoder layers, draws, sums of weights, packed products.

In: numpy arrays and the descriptions of ``arrays``. Out: arrays, in place where a docstring says so. Compiled code and
where it is kept belong to ``compiling``.
"""
