"""Sound requests for the endpoints that are our own: scores of texts, steering of an answer that is being written; and
what was kept of an answer, which has to be there first."""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

SCORE = "/v1/score"
_KEPT = re.compile(rb'"id": ?"(resp_[0-9a-f]+)"')
_MOST = 32
_STRANGE = ["x", "resp_0", "chatcmpl-0", "%00", "..%2f..", "a" * 300, "%ff", "-", "%c3%a9"]


class Seen:
    """Ids that answers have named: of streams, some of which still run, and of answers that are kept."""

    def __init__(self) -> None:
        self._streams: deque[str] = deque(maxlen=_MOST)
        self._kept: deque[str] = deque(maxlen=_MOST)

    def stream(self, name: str) -> None:
        """A stream has begun."""
        self._streams.append(name)

    def answer(self, body: bytes) -> None:
        """An answer is there; it may be one that is kept."""
        self._kept.extend(name.decode() for name in _KEPT.findall(body)[:1])

    def live_steering(self, rng: random.Random) -> str:
        """The path that steers one of the newest streams, or one that is not there."""
        newest = list(self._streams)[-3:]
        return f"/v1/generate/{rng.choice(newest if newest and rng.random() < 0.9 else _STRANGE)}/steering"

    def kept(self, rng: random.Random) -> tuple[str, str]:
        """Method and path of a question about an answer that is kept, or is not."""
        known = list(self._kept)
        path = f"/v1/responses/{rng.choice(known if known and rng.random() < 0.8 else _STRANGE)}"
        lot = rng.random()
        if lot < 0.15:
            return "DELETE", path
        if lot < 0.4:
            return "GET", path + rng.choice(["", "?stream=false", "?stream=true", "?stream=x", "?include=a"])
        limit = rng.choice(["1", "20", "100", "0", "-1", "101", "x", "9" * 30, ""])
        after = rng.choice(["", "msg_0", *_STRANGE])
        asked = [f"limit={limit}", f"order={rng.choice(['asc', 'desc', 'up', ''])}", f"after={after}", "include=x"]
        return "GET", f"{path}/input_items?{'&'.join(rng.sample(asked, rng.randint(0, 3)))}"


def score_body(rng: random.Random, text: Callable[[int], str], vocabulary: int) -> dict[str, Any]:
    """A body for ``SCORE`` without model and steering."""
    body: dict[str, Any] = {"by": rng.choice(["likelihood", "implicit", "explicit", "router", {"ask": "Is it bad?"}])}
    body["texts"] = [
        text(6) if rng.random() < 0.7 else [rng.randrange(vocabulary) for _ in range(rng.randint(1, 9))]
        for _ in range(rng.randint(1, 5))
    ]
    if rng.random() < 0.5:
        body["prompt"] = text(6)
    else:
        body["messages"] = [{"role": "user", "content": text(6)}]
    options: dict[str, Callable[[], Any]] = {
        "per": lambda: rng.choice(["answer", "token"]),
        "end": lambda: rng.random() < 0.5,
        "cache_salt": lambda: text(2),
    }
    return body | {name: drawn() for name, drawn in options.items() if rng.random() < 0.3}


def schedule(rng: random.Random, parts: Sequence[dict[str, Any]], longest: int) -> list[dict[str, Any]]:
    """``parts`` of steering one after the other, within an answer of ``longest`` tokens or a little beyond."""
    ends = sorted(rng.sample(range(1, longest + 4), len(parts) - 1))
    return [{**part, "until": end} for part, end in zip(parts, ends, strict=False)] + [dict(parts[-1])]


def rank(rng: random.Random, n: int) -> dict[str, Any]:
    """What chooses among ``n`` answers."""
    by = ["likelihood", "implicit", "explicit", "router", {"ask": "Is it bad?"}, {"vote": r"(\w+)\W*$"}]
    options: dict[str, Any] = {"by": rng.choice(by)}
    if rng.random() < 0.5:
        options["per"] = rng.choice(["answer", "token"])
    if rng.random() < 0.5:
        options["keep"] = rng.randint(1, n)
    return options


def search(rng: random.Random) -> dict[str, Any]:
    """What is kept of several continuations."""
    unsure = {"entropy": [rng.uniform(0, 2), rng.uniform(2.5, 6)], "most": rng.randint(1, 4)}
    options = {
        "by": rng.choice(["likelihood", "implicit", "explicit"]),
        "until": rng.choice(["sentence", "punctuation", 1, 3, 16]),
        "draws": rng.choice([1, 2, 4, unsure, {}]),
        "beam": rng.randint(1, 3),
    }
    return {key: value for key, value in options.items() if key == "by" or rng.random() < 0.7}


def monitor(rng: random.Random, values: Sequence[str], text: Callable[[int], str]) -> dict[str, Any]:
    """What watches an answer: one of ``values``, of which only explicit ones are taken, or a question."""
    options: dict[str, Any] = {}
    if values and rng.random() < 0.6:
        options = {"value": rng.choice(values), "above": rng.choice([-1e9, -1, 0, 0.5, 1e9])}
    else:
        options = {"ask": f"{text(4)} bad?", "above": rng.choice([0, 0.3, 0.5, 0.9])}
    for name in ("for", "hold"):
        if rng.random() < 0.5:
            options[name] = rng.randint(1, 6)
    return options
