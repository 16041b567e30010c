"""Tool calls: the schemas of a request's tools, the grammar that a call must follow, and reading calls from text.

In: ``tools`` of a request and the text that a model wrote. Out: grammars and calls. A parser belongs to one answer.
"""
