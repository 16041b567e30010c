"""Preferences, coefficients and what identifies a merge: pure arithmetic.

In: weights per objective and a family's matrix or measurements. Out: one signed coefficient per member (float64), and
``WeightsKey``, the identity under which caches keep what was computed with them.
"""
