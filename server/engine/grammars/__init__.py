"""Forms that answers must have, compiled and followed in processes of their own, so that none ends the server.

In: a ``GrammarSpec`` and the tokens that a sequence drew. Out: masks of the tokens that may come next. ``pool`` owns
the processes; a ``worker`` imports neither torch nor anything of the server.
"""
