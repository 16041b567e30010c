"""OpenAI's endpoints: the bodies of chat and text completions, and their answers, whole and streamed.

In: a validated body or the outputs of the engine. Out: replies in OpenAI's shapes.
"""
