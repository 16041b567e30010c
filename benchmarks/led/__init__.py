"""Answers that several sequences make: what it costs to choose among them.

In: a family. Out: rows of results by number of requests. Nothing here keeps state between runs.
"""
