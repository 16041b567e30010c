"""Tasks that an expert can be trained for, each with a generator of prompts and a check of answers.

In: a seed. Out: prompts with their right answers.
"""
