"""What a row of the draft model has is always a part of the text that it is of."""

import random
from types import SimpleNamespace
from typing import Any

from seeds import fresh_seed

from ladle.server.engine.drafting.draft_rows import DraftRows


class Text(SimpleNamespace):
    """A sequence, as far as rows look at it."""

    __hash__ = object.__hash__


def _text(rng: random.Random, slot: int) -> Any:
    prompt = tuple(rng.choices(range(3), k=rng.randint(1, 40)))
    return Text(slot=slot, output=[], request=SimpleNamespace(prompt=prompt))


def test_rows_follow_their_texts() -> None:
    """Texts that grow, end, change slots and are guessed at, of so few tokens that they often agree by chance."""
    rng = random.Random(fresh_seed())
    window = rng.randint(4, 40)
    rows, computed = DraftRows(3, window), {slot: [] for slot in range(3)}
    texts = [_text(rng, slot) for slot in range(3)]
    for _ in range(2000):
        index = rng.randrange(3)
        text = texts[index]
        if rng.random() < 0.02:
            text.slot, texts[index] = None, _text(rng, index)
            continue
        if rng.random() < 0.05:
            # Two texts change places: both were set back.
            other = texts[(index + 1) % 3]
            text.slot, other.slot = other.slot, text.slot
        text.output.extend(rng.choices(range(3), k=rng.choice([0, 1, 1, 2, 9])))
        guessed: list[int] = []
        for _ in range(rng.randint(1, 5)):
            lack = rows.lack(text, guessed)
            assert lack.tokens and (not lack.fresh or lack.kept == 0)
            # What a device would have: what it keeps, and what it computes behind it.
            held = computed[lack.slot][: lack.kept] + lack.tokens
            count = rng.choice([len(lack.tokens), max(0, len(lack.tokens) - 1)])
            rows.computed(text, lack, count)
            computed[lack.slot] = held[: lack.kept + count]
            whole = [*text.request.prompt, *text.output, *guessed]
            assert whole[len(whole) - len(held) :] == held
            assert len(held) - len(guessed) <= window
            guessed.append(rng.randrange(3))
    assert rows.held <= 3


def test_rows_of_who_has_no_slot_are_nobodys() -> None:
    rng = random.Random(fresh_seed())
    rows, text = DraftRows(2, 16), _text(rng, 1)
    rows.computed(text, rows.lack(text), 1)
    assert rows.held == 1
    text.slot = None
    assert rows.held == 0
