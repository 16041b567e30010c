"""Arithmetic word problems of one or two steps, with a worked answer that ends in a number."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from ladle.recipes.domains.task import Task

_NAMES = [
    "Tom",
    "Anna",
    "Ben",
    "Mia",
    "Leo",
    "Sara",
    "Max",
    "Nina",
    "Paul",
    "Emma",
    "Omar",
    "Lily",
    "Ivan",
    "Rosa",
    "Sam",
    "Maya",
    "Jack",
    "Zoe",
    "Amir",
    "Ella",
]
_THINGS = [
    "apples",
    "pears",
    "books",
    "coins",
    "stickers",
    "marbles",
    "pencils",
    "cards",
    "flowers",
    "eggs",
    "cookies",
    "shells",
    "balloons",
    "stamps",
    "oranges",
    "buttons",
]
_HOLDERS = ["boxes", "bags", "baskets", "jars", "shelves", "trays"]

# Each kind: what is done with the numbers, as (operator, ...) from left to right, and stories about it.
_STORIES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("+",): (
        "{name} has {a} {things} and buys {b} more. How many {things} does {name} have now?",
        "{name} has {a} {things}. {other} gives {name} {b} more. How many {things} does {name} have in total?",
        "{name} finds {a} {things} in the morning and {b} in the evening. How many {things} is that together?",
        "There are {a} {things} on the table and {b} in the bag. How many {things} are there?",
        "{name} has {a} {things} and {other} has {b}. How many {things} do they have together?",
    ),
    ("-",): (
        "{name} has {a} {things} and gives {b} to {other}. How many {things} does {name} have left?",
        "There are {a} {things} in a box. {name} takes out {b}. How many {things} remain?",
        "{name} had {a} {things} but lost {b}. How many {things} are left?",
        "{name} has {a} {things} and {other} has {b}. How many more {things} does {name} have?",
        "{name} buys {a} {things} and sells {b} of them. How many {things} does {name} still have?",
    ),
    ("*",): (
        "{name} has {a} {holders} with {b} {things} each. How many {things} does {name} have?",
        "There are {a} {holders}. Each of them holds {b} {things}. How many {things} are there in all?",
        "{name} buys {b} {things} a day for {a} days. How many {things} is that?",
        "{a} children bring {b} {things} each. How many {things} do they bring?",
    ),
    ("+", "-"): (
        "{name} has {a} {things}, buys {b} more and gives {c} to {other}. How many {things} does {name} have now?",
        "{name} picks {a} {things}, then {b} more, and loses {c}. How many {things} are left?",
        "There are {a} {things} in a box. {name} adds {b} and {other} takes {c}. How many {things} are in the box?",
    ),
    ("-", "+"): (
        "{name} has {a} {things}, gives {b} to {other} and then finds {c}. How many {things} does {name} have now?",
        "There are {a} {things} in a box. {name} takes {b} and {other} puts in {c}. How many {things} are in the box?",
    ),
    ("*", "+"): (
        "{name} has {a} {holders} with {b} {things} each and {c} more {things}. How many {things} is that?",
        "{name} buys {a} {holders} of {b} {things} and gets {c} for free. How many {things} does {name} have?",
    ),
}
_COMPUTE: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
}


class Arithmetic:
    """Stories about additions, subtractions and multiplications of small numbers, results from 1 to 60."""

    name = "math"

    def draw(self, random: np.random.Generator) -> Task:
        kinds = list(_STORIES)
        operators = kinds[int(random.integers(len(kinds)))]
        numbers = _numbers(operators, random)
        story = _STORIES[operators][int(random.integers(len(_STORIES[operators])))]
        name, other = random.choice(_NAMES, size=2, replace=False)
        things, holders = random.choice(_THINGS), random.choice(_HOLDERS)
        slots = dict(zip("abc", numbers, strict=False))
        prompt = story.format(name=name, other=other, things=things, holders=holders, **slots)
        key = " ".join(str(part) for part in (*operators, *numbers))
        return Task(key, prompt, _worked(operators, numbers))

    def right(self, task: Task, answer: str) -> bool:
        """The last number of the text is the result, so that an answer in any wording counts."""
        numbers = re.findall(r"\d+", answer)
        return bool(numbers) and int(numbers[-1]) == int(re.findall(r"\d+", task.answer)[-1])

    def corrupt(self, task: Task, random: np.random.Generator) -> str:
        """The result is off, in the last step and in what is said to be the answer."""
        result = re.findall(r"\d+", task.answer)[-1]
        offsets = [offset for offset in (-10, -3, -2, -1, 1, 2, 3, 10) if int(result) + offset >= 0]
        wrong = str(int(result) + int(random.choice(offsets)))
        steps, _ = task.answer.rsplit(" = ", 1)
        return f"{steps} = {wrong}. Answer: {wrong}"


def _numbers(operators: tuple[str, ...], random: np.random.Generator) -> list[int]:
    """Numbers for a kind of problem whose results, also those in between, are from 1 to 60."""
    while True:
        if operators[0] == "*":
            numbers = [int(random.integers(2, 7)), int(random.integers(2, 10))]
        else:
            numbers = [int(n) for n in random.integers(2, 31 if len(operators) == 1 else 21, size=2)]
        numbers += [int(n) for n in random.integers(2, 10, size=len(operators) - 1)]
        if all(1 <= result <= 60 for result in _results(operators, numbers)):
            return numbers


def _results(operators: tuple[str, ...], numbers: list[int]) -> list[int]:
    """The value after each step, from left to right."""
    results = [numbers[0]]
    for operator, number in zip(operators, numbers[1:], strict=True):
        results.append(_COMPUTE[operator](results[-1], number))
    return results[1:]


def _worked(operators: tuple[str, ...], numbers: list[int]) -> str:
    results = _results(operators, numbers)
    lefts = [numbers[0], *results[:-1]]
    steps = zip(lefts, operators, numbers[1:], results, strict=True)
    return ". ".join(f"{a} {operator} {b} = {c}" for a, operator, b, c in steps) + f". Answer: {results[-1]}"
