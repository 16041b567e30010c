"""What is asked of the engine and what becomes of it: requests, sequences, grammars, answers as text.

In: a ``GenerationRequest``. Out: ``StepOutput``s. Who writes a ``Sequence``: ``admission`` makes it; the scheduler
writes ``slot`` and ``lanes``; the engine appends to ``output`` and ends it. ``queue`` is shared by threads, and locks.
"""
