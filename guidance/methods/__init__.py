"""One file per method, and the classes that several methods share (``merging_method``, ``guidance_method``,
``scored_method``, ``routed_method``).

In: a ``Family`` and checked steering options. Out: a ``Plan``. ``guidance.registry`` lists them.
"""
