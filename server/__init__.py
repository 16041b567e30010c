"""The HTTP server: from a body to a request of the engine, and from its outputs to an answer.

In: HTTP. Out: HTTP. ``state.ServerState`` is what handlers share; ``run`` and ``admin`` change it.
"""
