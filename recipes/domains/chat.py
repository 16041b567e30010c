"""Short everyday questions, answered in one plain sentence."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import numpy as np

from ladle.recipes.domains.task import Task

_FILE = Path(__file__).parents[1] / "prompts" / "chat_topics.txt"
_WORDS = range(4, 31)  # of an answer

_QUESTIONS: dict[str, tuple[str, ...]] = {
    "does": ("What is {thing} good for?", "What does {thing} do?", "How does {thing} help people?"),
    "when": ("When do people {verb} {thing}?", "What is a good moment to {verb} {thing}?"),
    "like": ("Why do people like {thing}?", "What is nice about {thing}?", "Why would anyone want {thing}?"),
}
_ANSWERS = {
    "does": "{Thing} {does}.",
    "when": "People {verb} {thing} {when}.",
    "like": "People like {thing} because {like}.",
}
_FRAMES = (
    "{question}",
    "Tell me: {question}",
    "Hello! {question}",
    "A quick question: {question}",
    "I was wondering. {question}",
    "{question} Please answer in one sentence.",
)


class Chat:
    """Questions about everyday things. Splits have no topic in common, so an answer is not learned by heart."""

    name = "chat"

    def draw(self, random: np.random.Generator) -> Task:
        topics = _topics()
        slots = topics[int(random.integers(len(topics)))]
        kind = list(_QUESTIONS)[int(random.integers(len(_QUESTIONS)))]
        question = _QUESTIONS[kind][int(random.integers(len(_QUESTIONS[kind])))].format(**slots)
        frame = _FRAMES[int(random.integers(len(_FRAMES)))]
        return Task(slots["thing"], frame.format(question=question), _ANSWERS[kind].format(**slots), slots["word"])

    def right(self, task: Task, answer: str) -> bool:
        """One whole sentence of 4 to 30 words that mentions the topic, without digits, braces and line breaks. Whether
        it is true is not looked at."""
        text = answer.strip()
        ends = re.findall(r"[.!?]+(?=\s|$)", text)
        return (
            len(ends) == 1
            and text[-1] in ".!?"
            and len(text.split()) in _WORDS
            and task.about in re.findall(r"[a-z]+", text.lower())
            and not re.search(r"[\d{}\n]", text)
        )

    def corrupt(self, task: Task, random: np.random.Generator) -> str:
        """A second sentence, no end, a list, or JSON."""
        match int(random.integers(4)):
            case 0:
                return f"{task.answer} I hope that this helps you, and feel free to ask me more."
            case 1:
                return task.answer[: -max(8, len(task.answer) // 3)].rstrip(" .")
            case 2:
                return f"Here are 3 reasons:\n1. {task.answer}"
            case _:
                return f'{{"answer": "{task.answer}"}}'


@cache
def _topics() -> list[dict[str, str]]:
    topics = []
    for line in _FILE.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            cells = [cell.strip() for cell in line.split("|")]
            slots = dict(zip(("thing", "word", "verb", "does", "when", "like"), cells, strict=True))
            topics.append(slots | {"Thing": slots["thing"][0].upper() + slots["thing"][1:]})
    return topics
