"""Studies: one question each about what the project claims, answered by measuring.

In: families, served or from disk, and prompts. Out: the tables that lie in ``studies/`` or stand in the documents. What
they share with sweeps and training is theirs; nothing imports a study.
"""
