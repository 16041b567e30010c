"""Merges that are written down: into memory for the engine, into a checkpoint, or into low-rank factors.

In: a ``Family`` and coefficients. Out: tensors or a folder. A ``Merge`` owns scratch memory and belongs to one thread.
"""
