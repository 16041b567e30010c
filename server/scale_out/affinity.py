"""Which replica knows a request's beginning already: names of prefixes, and who has computed them. Pure bookkeeping; a
replica that is sent something else computes it anew, and answers the same."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

_PIECE = 64  # characters, about a block of the KV cache
_PIECES = 128
# Fields that decide on which weights a prompt is computed.
_WEIGHTS = ("model", "steering")
# Keys of ``steering`` that do not.
_ASIDE = ("trace",)


def affinity_keys(body: Mapping[str, Any], materialised: bool = False) -> list[bytes]:
    """Names of what computing the request ``body`` leaves behind, the most general first: where members are
    ``materialised`` its merged weights, then ever longer prefixes of its prompt, whose state is kept by weights too.
    """
    steering = body.get("steering")
    if isinstance(steering, Mapping):
        steering = {key: value for key, value in steering.items() if key not in _ASIDE}
    weights = json.dumps([body.get("model"), steering], sort_keys=True, default=str)
    last = blake2b(weights.encode(errors="replace"), digest_size=12).digest()
    keys = [last] if materialised else []
    text = _text(body)
    for start in range(0, min(len(text), _PIECE * _PIECES) - _PIECE + 1, _PIECE):
        piece = text[start : start + _PIECE].encode(errors="replace")
        last = blake2b(piece, key=last, digest_size=12).digest()
        keys.append(last)
    return keys


def _text(body: Mapping[str, Any]) -> str:
    """What is continued, in a form in which equal beginnings look equal."""
    messages, prompt = body.get("messages"), body.get("prompt")
    if isinstance(messages, list):
        # Not as one JSON list: its end would stand in the way of a next turn.
        return "".join(json.dumps(message, default=str, ensure_ascii=False) for message in messages)
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        return " ".join(map(str, prompt))
    if isinstance(prompt, list):
        prompt = prompt[0] if prompt else ""
    return prompt if isinstance(prompt, str) else ""


class AffinityTable:
    """Who has computed what, the last one where there were several; the oldest of more than ``most`` is forgotten."""

    def __init__(self, most: int = 1 << 16) -> None:
        self._most = most
        self._owners: OrderedDict[bytes, str] = OrderedDict()

    def note(self, keys: Iterable[bytes], replica: str) -> None:
        """``replica`` computes what ``keys`` name."""
        for key in keys:
            self._owners[key] = replica
            self._owners.move_to_end(key)
        while len(self._owners) > self._most:
            self._owners.popitem(last=False)

    def best(self, keys: list[bytes]) -> str | None:
        """Who has the most of ``keys``, the most general first; None where nobody has any."""
        return next((owner for key in reversed(keys) if (owner := self._owners.get(key)) is not None), None)

    def keep(self, replicas: set[str]) -> None:
        """Forget replicas that are gone."""
        for key in [key for key, owner in self._owners.items() if owner not in replicas]:
            del self._owners[key]
