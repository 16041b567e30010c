"""From logits to tokens: combining sources, routing, candidate values, masks, sampling, traces.

In: logits of all sources of a step. Out: one token per sequence with what is told about it. Tables that stay the same
while a sequence runs are kept by slot; the engine's thread alone writes them.
"""
