"""Pairs of a right and a wrong answer that a router is trained on: where experts answer wrongly, theirs is taken."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.progress import track

from ladle.merging.members.adapter import LowRankMember
from ladle.recipes.base_model import LoadedBase
from ladle.recipes.batched_sampling import sample
from ladle.recipes.domains.domains import DOMAINS, DomainQuestion, is_right
from ladle.recipes.experts.expert import encode
from ladle.recipes.scoring import Encoded
from ladle.recipes.soup import merged
from ladle.recipes.training.written_whole import written_whole


def greedy_answers(
    base: LoadedBase, questions: Sequence[DomainQuestion], max_tokens: int, rows: int
) -> list[list[int]]:
    """The model's most likely answer, token by token, to each question; the last token ends the turn unless the answer
    was cut. Uses the base's weights as they are, merged or not."""
    prompts = [base.prompt_ids(question.task.prompt) for question in questions]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: dict[int, list[int]] = {}
    for start in range(0, len(order), rows):
        chunk = order[start : start + rows]
        # One candidate is left to draw from: the most likely one.
        sampled = sample(
            base.model,
            [prompts[index] for index in chunk],
            eos=base.eos,
            max_tokens=max_tokens,
            temperature=1.0,
            top_k=1,
            top_p=1.0,
            seed=0,
        )
        answers.update(zip(chunk, sampled, strict=True))
    return [answers[index] for index in range(len(prompts))]


def stored_answers(
    base: LoadedBase,
    members: Mapping[str, LowRankMember],
    coefficients: Mapping[str, float],
    questions: Sequence[DomainQuestion],
    max_tokens: int,
    rows: int,
    file: Path,
) -> list[list[int]]:
    """`greedy_answers` of the base with members merged into it; a .jsonl file receives them, and is read if there."""
    if not file.exists():
        with merged(base, members, coefficients):
            answers = greedy_answers(base, questions, max_tokens, rows)
        store_answers(answers, file)
    return [list(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def store_answers(answers: Sequence[Sequence[int]], file: Path) -> None:
    """Writes token ids, an answer a line; the file is there whole or not at all."""
    with written_whole(file) as aside:
        aside.write_text("".join(json.dumps(list(answer)) + "\n" for answer in answers), encoding="utf-8")


def pairs_of(
    base: LoadedBase, questions: Sequence[DomainQuestion], answers: Mapping[str, Sequence[Sequence[int]]], seed: int
) -> list[tuple[Encoded, Encoded]]:
    """A right and a wrong answer to each question.

    The wrong one is drawn among the experts' answers that their domain's check refuses, and made by the domain where
    there is none. The right one is the taught one.

    Args:
        answers: token ids by expert, in the order of the questions.
    """
    random = np.random.default_rng(seed)
    pairs = []
    for number, question in enumerate(track(questions, f"{len(questions)} pairs")):
        right = encode(base, question)
        distinct = {tuple(own[number]) for own in answers.values()}
        wrong = sorted(tokens for tokens in distinct if not is_right(question, base.text(list(tokens))))
        if wrong:
            pairs.append((right, Encoded(right.prompt, wrong[int(random.integers(len(wrong)))])))
        else:
            corrupted = DOMAINS[question.domain].corrupt(question.task, random)
            pairs.append((right, encode(base, question, corrupted)))
    return pairs
