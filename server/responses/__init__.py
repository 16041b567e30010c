"""OpenAI's Responses API: the body of a request, answers whole and streamed.

In: a validated body or the outputs of the engine. Out: a conversation as all endpoints understand it, and replies in
the shapes of that API. What is kept of them lies in the server's state (``replies/kept_responses``); the endpoint's
handlers put it there.
"""
