"""Which tokens the next step computes.

In: running and waiting sequences and free memory. Out: a ``StepPlan``. The scheduler writes the lane table, the blocks
and the slots of sequences; nobody else does.
"""
