"""Triton kernels and their launchers, one file per operation.

In: tensors on a GPU, and the tables of ``step_tables``. Out: tensors on the same GPU. Every launcher has the signature
of its twin in ``reference``; ``variant`` names the specialisations that are compiled ahead of time.
"""
