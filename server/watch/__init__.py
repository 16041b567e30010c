"""What an operator sees: logs, metrics, traces, and the context of the request that they belong to.

In: events of handlers and figures of engines. Out: lines, metrics and spans. ``Metrics`` owns the registry.
"""
