"""Attention of a step's rows over the blocks of a KV pool, in vectors or in the processor's unit for matrices.

In: queries, the pool and where each row is (``arrays.PagedTokens``). Out: the mixed values of each row, in place.
"""
