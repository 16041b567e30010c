"""Memory for keys and values: the pool, its blocks, and which lanes hold which.

In: numbers of tokens and the weights they are computed under. Out: block tables and slot mappings. The ``LaneTable``
and the ``BlockManager`` are written by the scheduler alone; the pool's tensors by the forward.
"""
