"""Making families: rewards, training, evaluation, fitted coefficients.

In: a recipe (``configs``) or a family and prompts. Out: adapters, tables and reports in folders of their own.
"""
