"""Ladle's own endpoint: the body of ``POST /v1/generate`` and its answers.

In: a validated body or the outputs of the engine. Out: replies with steering and, where asked, a trace per token.
"""
