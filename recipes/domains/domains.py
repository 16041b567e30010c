"""What experts are trained for: domains that generate questions with their answers and tell a right answer from a wrong
one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ladle.recipes.domains.arithmetic import Arithmetic
from ladle.recipes.domains.chat import Chat
from ladle.recipes.domains.records import Records
from ladle.recipes.domains.task import Task
from ladle.recipes.prompt_list import SPLITS

_TENTHS = {"train": range(0, 7), "validation": range(7, 8), "test": range(8, 10)}
_PATIENCE = 2000  # draws in a row that bring nothing new, before giving up


class Domain(Protocol):
    """A kind of question. All it does follows from the generator it is given and from its arguments."""

    name: str

    def draw(self, random: np.random.Generator) -> Task:
        """A random question with its answer."""

    def right(self, task: Task, answer: str) -> bool:
        """Whether a text answers the question."""

    def corrupt(self, task: Task, random: np.random.Generator) -> str:
        """A wrong answer that looks like a right one."""


@dataclass(frozen=True)
class DomainQuestion:
    """A task of a named domain."""

    domain: str
    task: Task


DOMAINS: dict[str, Domain] = {domain.name: domain for domain in (Arithmetic(), Records(), Chat())}


def split_of(domain: str, key: str) -> str:
    """The split that all tasks with a key belong to: seven tenths train, one validation, two test, by a hash."""
    tenth = int.from_bytes(hashlib.sha256(f"{domain}:{key}".encode()).digest()[:4]) % 10
    return next(split for split in SPLITS if tenth in _TENTHS[split])


def questions(domain: str, split: str, count: int, seed: int) -> list[DomainQuestion]:
    """Draws different questions of one split; the same arguments give the same ones.

    What tasks of different splits never share is `Task.key`: for arithmetic the numbers and what is done with them,
    for records their contents, for chat the topic.

    Args:
        domain: a key of `DOMAINS`.
        split: "train", "validation" or "test".

    Raises:
        ValueError: there is no such domain or split, or it has not so many questions.
    """
    if domain not in DOMAINS:
        raise ValueError(f"domain: {domain!r} is not allowed; allowed: {', '.join(DOMAINS)}")
    if split not in SPLITS:
        raise ValueError(f"split: {split!r} is not allowed; allowed: {', '.join(SPLITS)}")
    random = np.random.default_rng([seed, SPLITS.index(split), *domain.encode()])
    drawn: dict[str, DomainQuestion] = {}
    idle = 0
    while len(drawn) < count and idle < _PATIENCE:
        task = DOMAINS[domain].draw(random)
        idle += 1
        if split_of(domain, task.key) == split and task.prompt not in drawn:
            drawn[task.prompt] = DomainQuestion(domain, task)
            idle = 0
    if len(drawn) < count:
        raise ValueError(f"count: {count} is not allowed; allowed: the domain {domain} has about {len(drawn)} {split}")
    return list(drawn.values())


def is_right(question: DomainQuestion, answer: str) -> bool:
    """Whether a text answers a question, by its domain's check."""
    return DOMAINS[question.domain].right(question.task, answer)
