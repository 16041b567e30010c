"""Decode steps recorded as CUDA graphs. In: layouts of recorded sizes. Out: the tokens that the steps unrecorded give.

A recording owns the static tensors that it reads and writes.
"""
