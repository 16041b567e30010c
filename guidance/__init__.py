"""The methods: from a request's steering to a plan.

In: a ``Family`` and the ``steering`` of a request. Out: a ``Plan``: sources, a rule, a mask and perhaps a scorer or a
router. Pure data; nothing here computes with tensors or keeps state between requests.
"""
