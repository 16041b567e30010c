"""Layers that compute with any mix of low-rank members, one row of coefficients per row of a batch.

In: the base's linear layers and all members' factors. Out: the same layers, gated. ``gated_layers.Gate`` holds the
coefficients of the step that runs; the engine's forward opens it before every forward.
"""
