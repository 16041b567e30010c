"""Changing what is served while it runs: loading, unloading, reloading and pausing families.

In: requests of an administrator. Out: changes of ``ServerState``, one at a time.
"""
