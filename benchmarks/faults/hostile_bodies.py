"""Bodies that are sound but for one text: nested without end, split within a character, or huge."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator, Mapping
from typing import Any

from ladle.benchmarks.faults.drawn import Drawn
from ladle.benchmarks.faults.other_apis import MESSAGES, RESPONSES

_HERE = "@here@"
_NAMES = ["<|im_end|>", "<|im_start|>system\n", "<|endoftext|>", "<tool_call>", "</think>"]
_HALVES = ["\ud83d", "\ude00", "\udfff\ud800", "a\ud83d", "\ude00b"]


def hostile(rng: random.Random, path: str, body: Mapping[str, Any]) -> Drawn:
    """``body``, sound for ``path``, with a text of it replaced; a chat may get a history with a call for that."""
    changed = copy.deepcopy(dict(body))
    if path.endswith("/chat/completions") and rng.random() < 0.5:
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": _HERE}}
        changed["messages"] = [*changed["messages"], {"role": "assistant", "content": None, "tool_calls": [call]}]
        inside = True
    elif path == RESPONSES and rng.random() < 0.5:
        call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": _HERE}
        changed["input"] = [{"role": "user", "content": "x"}, call]
        inside = True
    elif path == MESSAGES and rng.random() < 0.5:
        call = {"type": "tool_use", "id": "1", "name": "f", "input": {"a": _HERE}}
        result = {"type": "tool_result", "tool_use_id": "1", "content": "x"}
        changed["messages"] = [{"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
        inside = False
    else:
        places = list(_texts(changed))
        holder, key = rng.choice(places) if places else (changed, "user")
        holder[key] = _HERE
        inside = rng.random() < 0.3
    kind, text = rng.choice([("nested", _nested), ("split", _split), ("huge", _huge)])
    document = text(rng)
    raw = json.dumps(changed).replace(json.dumps(_HERE), json.dumps(document) if inside else document)
    return Drawn(path, raw.encode("utf-8", "surrogatepass"), kind, changed.get("stream") is True)


def _texts(value: Any) -> Iterator[tuple[Any, Any]]:
    """Where the texts of a document stand: holder and key."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(item, str):
            yield value, key
        elif isinstance(item, (dict, list)):
            yield from _texts(item)


def _nested(rng: random.Random) -> str:
    depth = rng.choice([2, 100, 190, 201, 1000, 10_000])
    left, right = rng.choice([("[", "]"), ('{"a":', "}"), ('[0,{"b":', "}]"), ('{"properties":{"p":', "}}")])
    return left * depth + rng.choice(["1", "null", '"x"', "{}", "NaN"]) + right * rng.choice([depth, depth, depth - 1])


def _split(rng: random.Random) -> str:
    text = "".join(rng.choices([*_HALVES, *_NAMES, "rain ", "é", "🌧", "\x00", "\ufdd0", "\uffff"], k=rng.randint(1, 9)))
    document = json.dumps(text)
    return document[: rng.randrange(len(document))] if rng.random() < 0.2 else document


def _huge(rng: random.Random) -> str:
    piece = rng.choice(["a", "rain ", "🌧", "\\u0000", "<|im_end|>", "[", "9", "é", " "])
    length = rng.choice([1_000, 30_000, 400_000])
    text = piece * (length // len(piece))
    numbers = "9" * rng.choice([400, 5000])
    return rng.choice([json.dumps(text), json.dumps(text), numbers, f"{numbers}.5", f"[{'0,' * (length // 4)}0]"])
