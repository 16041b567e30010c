"""Sentences that are to be put into JSON with given keys."""

from __future__ import annotations

import json

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
_CITIES = [
    "Oslo",
    "Rome",
    "Paris",
    "Lima",
    "Cairo",
    "Delhi",
    "Tokyo",
    "Berlin",
    "Madrid",
    "Boston",
    "Dublin",
    "Vienna",
    "Athens",
    "Seoul",
]
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
_COLORS = ["red", "blue", "green", "black", "white", "yellow", "brown", "gray"]
_ITEMS = ["lamp", "chair", "table", "bike", "jacket", "phone", "mug", "clock", "carpet", "bottle", "radio", "vase"]
_JOBS = ["teacher", "doctor", "baker", "driver", "painter", "nurse", "farmer", "singer", "pilot", "cook"]
_PETS = ["cat", "dog", "rabbit", "horse", "parrot", "turtle"]

# Each kind of record: the values of its slots with the keys that may be asked for, and sentences that state them.
_SLOTS: dict[str, tuple[tuple[str, ...], list[str] | tuple[int, int]]] = {
    "person": (("name", "person"), _NAMES),
    "city": (("city", "town", "place"), _CITIES),
    "day": (("day", "date", "weekday"), _DAYS),
    "color": (("color", "paint"), _COLORS),
    "item": (("item", "product", "article"), _ITEMS),
    "job": (("job", "work"), _JOBS),
    "pet": (("pet", "animal"), _PETS),
    "age": (("age", "years"), (18, 80)),
    "price": (("price", "cost", "dollars"), (2, 99)),
    "count": (("count", "people", "guests"), (2, 12)),
}
_SENTENCES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("person", "age", "city"), "{person} is {age} years old and lives in {city}."),
    (("person", "age", "city"), "In {city} lives {person}, aged {age}."),
    (("person", "job", "city"), "{person} works as a {job} in {city}."),
    (("person", "job", "age"), "{person}, a {job}, is {age} years old."),
    (("item", "color", "price"), "The {color} {item} costs {price} dollars."),
    (("item", "color", "price"), "For {price} dollars you get a {item} in {color}."),
    (("person", "item", "price"), "{person} paid {price} dollars for a {item}."),
    (("person", "day", "count"), "{person} booked a table for {count} people on {day}."),
    (("city", "day", "count"), "On {day} there is a dinner in {city} for {count} guests."),
    (("person", "pet", "color"), "{person} has a {color} {pet}."),
    (("person", "city", "day"), "{person} travels to {city} on {day}."),
    (("person", "item", "color"), "{person} wants a {color} {item}."),
)
_ORDERS = (
    "Give this as JSON with the keys {keys}: {sentence}",
    "Write this as a JSON object with the keys {keys}. {sentence}",
    "{sentence} Give me that as JSON with the keys {keys}.",
    "Turn this into JSON (keys: {keys}): {sentence}",
)


class Records:
    """One sentence with three facts, of which two or three are asked for under stated keys, in stated order."""

    name = "json"

    def draw(self, random: np.random.Generator) -> Task:
        slots, sentence = _SENTENCES[int(random.integers(len(_SENTENCES)))]
        values = {slot: _value(slot, random) for slot in slots}
        asked = random.permutation(list(slots))[: int(random.integers(2, 4))]
        record = {str(random.choice(_SLOTS[slot][0])): values[slot] for slot in asked}
        keys = ", ".join(list(record)[:-1]) + " and " + list(record)[-1]
        order = _ORDERS[int(random.integers(len(_ORDERS)))]
        prompt = order.format(keys=keys, sentence=sentence.format(**values))
        return Task(" ".join(str(values[slot]) for slot in slots), prompt, json.dumps(record))

    def right(self, task: Task, answer: str) -> bool:
        """The whole text is JSON and equals the record: the same keys, values and types, in any order."""
        try:
            document = json.loads(answer)
        except ValueError:
            return False
        expected = json.loads(task.answer)
        # 18 == 18.0 in Python; a number has to be written as it was said.
        return bool(document == expected) and all(type(document[key]) is type(value) for key, value in expected.items())

    def corrupt(self, task: Task, random: np.random.Generator) -> str:
        """A key is missing, two values are swapped, a key has another name, or the object is not closed."""
        record = json.loads(task.answer)
        keys = list(record)
        match int(random.integers(4)):
            case 0:
                record.pop(keys[int(random.integers(len(keys)))])
            case 1:
                record[keys[0]], record[keys[1]] = record[keys[1]], record[keys[0]]
            case 2:
                record = {("value" if key == keys[-1] else key): value for key, value in record.items()}
            case _:
                return task.answer[:-1]
        return json.dumps(record)


def _value(slot: str, random: np.random.Generator) -> str | int:
    values = _SLOTS[slot][1]
    if isinstance(values, tuple):
        return int(random.integers(*values))
    return str(random.choice(values))
