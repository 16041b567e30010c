"""Who may ask, and how much: keys, callers and their limits, hosts and origins.

In: headers and addresses of a request. Out: a ``Caller`` or an ``ApiError``. ``ApiKeys`` watches the file of keys; a
``Caller`` counts what its key has spent.
"""
