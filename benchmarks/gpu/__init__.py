"""Kernels and decoding steps timed on a GPU, and the goals that they are held against.

In: a GPU and the shapes of known models. Out: rows by operation and shape, and which goals they meet.
"""
