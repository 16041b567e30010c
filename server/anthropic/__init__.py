"""Anthropic's Messages API: the bodies of its two endpoints, and its answers, whole and streamed.

In: a validated body or the outputs of the engine. Out: a conversation as all endpoints understand it, and replies in
Anthropic's shapes. Nothing here keeps state.
"""
