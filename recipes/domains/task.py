"""One question of a domain with the answer that is taught."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A question and its answer.

    Attributes:
        key: what it asks about; tasks of different splits never share one.
        prompt: the question as a user writes it.
        answer: what an expert is taught to say.
        about: a word that an answer has to mention; empty where the answer is checked by its content alone.
    """

    key: str
    prompt: str
    answer: str
    about: str = ""
