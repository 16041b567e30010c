"""What came after the last tokens of a text where they stood in it before: a guess at what comes now, for nothing."""

from __future__ import annotations

from collections.abc import Iterable

_LONGEST, _SHORTEST = 3, 2
"""Tokens that have to repeat. Two are the fewest that say more than which words are frequent."""
_REMEMBERED = 1 << 14
"""Tokens of a prompt that are looked at, the last ones: the index of a longer one would hold up a step."""


class NgramIndex:
    """The text of one sequence, prompt and answer, with the last place of each of its n-grams.

    Prompt lookup decoding (assisted generation without a model); which n-grams are tried, the longest first, and that
    a guess goes on into itself, is our choice.
    """

    def __init__(self, prompt: Iterable[int]) -> None:
        """``prompt``: token ids in front of the answer."""
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}
        self.extend(list(prompt)[-_REMEMBERED:])

    def extend(self, tokens: Iterable[int]) -> None:
        """More of the text. An n-gram counts from the moment that a token follows it."""
        own, ends = self._tokens, self._ends
        for token in tokens:
            end = len(own)
            # Before the token is appended: the n-grams that end in front of it now have a continuation, this token at
            # ``end``.
            for length in range(_SHORTEST, _LONGEST + 1):
                if end >= length:
                    ends[tuple(own[end - length :])] = end
            own.append(token)

    def guess(self, most: int) -> tuple[int, ...]:
        """Up to ``most`` tokens that may come next: those that followed where the text's last tokens stood before.

        Empty where they never did. A guess that reaches the end of the text goes on with its own beginning.
        """
        # Longest match first: three tokens that repeat say more than two.
        own = self._tokens
        for length in range(min(_LONGEST, len(own)), _SHORTEST - 1, -1):
            end = self._ends.get(tuple(own[-length:]))
            if end is not None:
                # Text that repeats with a period: beyond its end the guess reads its own first tokens again.
                period = len(own) - end
                return tuple(own[end + index % period] for index in range(most))
        return ()
