"""The draft model: a small language model that guesses what a plan will draw.

In: sequences and what was guessed of them so far. Out: one more token of each, and how likely the model holds it.
``DraftModel`` writes the state of its rows, one for each slot; nobody else does.
"""
