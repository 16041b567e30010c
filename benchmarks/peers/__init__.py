"""Other servers beside Ladle, on one machine and in turns: decode steps, prompts, long contexts, many clients.

In: the folder of a base model, and where the others are installed. Out: rows, each with every server's figure and the
ratio to the best of the others. Nobody writes state that outlasts a run.
"""
