"""What ``ladle check --deep`` measures on a family's own models: whether its values may be merged, and whether what
guides fits what is guided.

In: a loaded ``Family`` and prompts. Out: a ``DeepReport``. The family is left as it was.
"""
