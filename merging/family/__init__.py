"""A family: its manifest, the models and members that it names, what was measured on it, and the report of a check.

In: a folder with family.toml. Out: a ``Family``, which is complete and checked, and does not change after it is loaded.
"""
