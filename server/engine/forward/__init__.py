"""One forward: a transformers model with gated layers and attention over the pool, and the layout of its tokens.

In: a ``StepLayout`` (token ids, positions, slot mapping, block tables, coefficients). Out: logits and hidden states.
The forward writes the pool's keys and values, and nothing else that outlives it.
"""
