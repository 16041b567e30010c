"""Models shared by several processes: what the engine's process tells the others, and how they exchange.

In: layouts of forwards. Out: the same forwards on every process. The engine's process decides alone.
"""
