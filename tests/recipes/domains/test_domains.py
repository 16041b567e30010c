import json
import re

import numpy as np
import pytest

from ladle.recipes.domains.domains import DOMAINS, DomainQuestion, is_right, questions, split_of
from ladle.recipes.domains.task import Task
from ladle.recipes.prompt_list import SPLITS

COUNTS = {"train": 200, "validation": 40, "test": 60}


@pytest.mark.parametrize("domain", list(DOMAINS))
def test_splits_are_disjoint_repeatable_and_as_large_as_asked(domain: str, seed: int) -> None:
    drawn = {split: questions(domain, split, count, seed) for split, count in COUNTS.items()}
    for split, found in drawn.items():
        assert len({question.task.prompt for question in found}) == len(found) == COUNTS[split]
        assert questions(domain, split, COUNTS[split], seed) == found
        assert {split_of(domain, question.task.key) for question in found} == {split}
    keys = [{question.task.key for question in drawn[split]} for split in SPLITS]
    assert not (keys[0] & keys[1] or keys[0] & keys[2] or keys[1] & keys[2])
    assert questions(domain, "train", 20, seed + 1) != questions(domain, "train", 20, seed)


@pytest.mark.parametrize("domain", list(DOMAINS))
def test_what_is_taught_is_right_and_what_is_corrupted_is_not(
    domain: str, seed: int, random: np.random.Generator
) -> None:
    for question in questions(domain, "train", 300, seed):
        assert is_right(question, question.task.answer), question
        for _ in range(4):
            wrong = DOMAINS[domain].corrupt(question.task, random)
            assert not is_right(question, wrong), (question, wrong)


def test_worked_answers_are_sums_that_hold(seed: int) -> None:
    for question in questions("math", "train", 300, seed):
        *steps, last = question.task.answer.split(". ")
        numbers = [int(n) for n in re.findall(r"\d+", question.task.prompt)]
        results = []
        for step in steps:
            left, result = step.split(" = ")
            a, operator, b = left.split()
            assert {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[operator] == int(result)
            assert {int(a), int(b)} <= {*numbers, *results}
            results.append(int(result))
        assert last == f"Answer: {results[-1]}"
        assert 1 <= results[-1] <= 60


def test_records_state_what_is_asked_for(seed: int) -> None:
    for question in questions("json", "train", 300, seed):
        record = json.loads(question.task.answer)
        assert 2 <= len(record) <= 3
        for key, value in record.items():
            assert key in question.task.prompt and str(value) in question.task.prompt


def _question(domain: str, answer: str, about: str = "") -> DomainQuestion:
    return DomainQuestion(domain, Task("key", "prompt", answer, about))


@pytest.mark.parametrize(
    ("domain", "answer", "right"),
    [
        ("math", "Tom has 5 + 3 = 8 apples.", True),
        ("math", "8 apples, of 5 and 3", False),
        ("math", "none", False),
        ("math", "18", False),
        ("json", '{"age": 31, "name": "Mia"}', True),
        ("json", '{"name": "Mia", "age": "31"}', False),
        ("json", '{"name": "Mia", "age": 31.0}', False),
        ("json", '{"name": "Mia", "age": 31, "city": "Oslo"}', False),
        ("json", '{"name": "Mia"}', False),
        ("json", 'Here it is: {"name": "Mia", "age": 31}', False),
        ("json", "[1]", False),
        ("chat", "A lamp lights up a room at night.", True),
        ("chat", "It lights up a room at night.", False),
        ("chat", "A lamp lights up a room. It is nice.", False),
        ("chat", "A lamp lights up a room at night", False),
        ("chat", "A lamp lights up 2 rooms at night.", False),
        ("chat", "A lamp!", False),
        ("chat", "A clamp lights up a room at night.", False),
        ("chat", "", False),
        ("chat", "A lamp lights up\na room at night.", False),
    ],
)
def test_checks(domain: str, answer: str, right: bool) -> None:
    taught = {"math": "5 + 3 = 8. Answer: 8", "json": '{"name": "Mia", "age": 31}', "chat": "A lamp is a lamp."}
    assert is_right(_question(domain, taught[domain], "lamp"), answer) is right


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("poetry", "train", 1), "domain: 'poetry' is not allowed; allowed: math, json, chat"),
        (("math", "dev", 1), "split: 'dev' is not allowed; allowed: train, validation, test"),
        (("chat", "validation", 5000), "count: 5000 is not allowed"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments: tuple[str, str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        questions(*arguments, 1)
