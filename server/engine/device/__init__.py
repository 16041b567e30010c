"""The device that the engine computes on: finding it, moving arrays there and back, returning freed memory.

In: host arrays. Out: device tensors, by one copy and one wait per step (``transfers``). Threads say which device they
launch on (``device``). What a processor needs compiled is begun early (``early_code``).
"""
