"""The numeric operations of a decoding step.

In: tensors of a step (scores, factors, keys and values, coefficients) and the tables of ``step_tables``. Out: tensors.
Nothing here keeps state between calls but compiled code. Other rooms import ``dispatch``, which chooses between the
Triton kernels (``gpu``), the loops compiled for a processor (``cpu``) and plain torch (``reference``).
"""
