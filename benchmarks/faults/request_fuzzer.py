"""Requests drawn at random over steering, sampling and form, good ones and broken ones."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Mapping
from typing import Any

from ladle.benchmarks.faults.drawn import Drawn
from ladle.benchmarks.faults.hostile_bodies import hostile
from ladle.benchmarks.faults.other_apis import COUNT, MESSAGES, RESPONSES, sound_body
from ladle.benchmarks.faults.own_endpoints import SCORE, Seen, monitor, rank, schedule, score_body, search
from ladle.benchmarks.faults.sampling_fields import older_fields, sampling_fields
from ladle.option_kinds import OneOf
from ladle.steering_options import OPTIONS

_WORDS = ["rain", "sea", "bread", "é", "雨", "🌧", "\n", " the", '"', "{", "\\", "\u2028", "a" * 40]
_GENERATE, _CHAT, _COMPLETIONS = "/v1/generate", "/v1/chat/completions", "/v1/completions"
_COEFFICIENTS, _TOKENIZE, _DETOKENIZE = "/v1/coefficients", "/tokenize", "/detokenize"
_LIVE, _KEPT = "/v1/generate/{id}/steering", "/v1/responses/{id}"
GENERATING = frozenset({_GENERATE, _CHAT, _COMPLETIONS})
_NASTY: list[Any] = [
    None, True, False, 0, 1, -1, 2, 0.5, -0.5, 1 << 31, 1 << 63, -(1 << 63), 10**400, 1e308, -1e308, 5e-324,
    float("nan"), float("inf"), float("-inf"), "", "x", "0", "nan", "x" * 5000, "\ud800", "\x00", "../../etc/passwd",
    [], {}, [[]], [None], {"": None}, [1, "a"], {"positive": 1}, {"x": {"y": {"z": []}}}, [[[[[[[[[[]]]]]]]]]],
]  # fmt: skip
_SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False},
    {"type": "array", "items": {"enum": ["x", "y"]}, "maxItems": 3},
    {"type": "string", "maxLength": 5},
    {"$ref": "#"},
    {"anyOf": []},
    {"type": "object", "properties": {"self": {"$ref": "#"}}},
]


class RequestFuzzer:
    """Draws requests for a family as ``GET /v1/families/{name}`` describes it.

    Args:
        rng: decides everything.
        family: that description.
        vocabulary: token ids that prompts may use.
        longest: tokens of an answer, at most.

    Attributes:
        seen: ids that answers have named; whoever sends the requests tells it.
    """

    def __init__(self, rng: random.Random, family: Mapping[str, Any], vocabulary: int, longest: int = 16) -> None:
        self._rng = rng
        self._family = family
        self._vocabulary = vocabulary
        self._longest = longest
        self.seen = Seen()
        self._methods = [name for name, method in family["methods"].items() if method["available"]]
        self._members = [member["name"] for member in family["members"]]
        self._judges = [member["name"] for member in family["members"] if member.get("kind") == "value"]
        # What is drawn of options that are sound only together with the family or the method; the others by their kind.
        self._options: dict[str, Callable[[], Any]] = {
            "strength": lambda: rng.choice([0, 0.5, 1, rng.uniform(-2, 3), 100]),
            "coefficients": self._coefficients,
            "terms": self._terms,
            "normalize": lambda: rng.choice(["none", "sum"]),
            "negative_prompt": lambda: self._text(4),
            "top_experts": lambda: rng.choice([1, 2, 3]),
        }

    def draw(self, sound: bool = False) -> Drawn:
        """The next request: half of all sound, a quarter mutated, one in seven hostile, one in ten garbage; or a
        ``sound`` one."""
        rng = self._rng
        shares = {
            _GENERATE: 10, _CHAT: 6, _COMPLETIONS: 6, MESSAGES: 5, RESPONSES: 5, _COEFFICIENTS: 2, _TOKENIZE: 1,
            _DETOKENIZE: 1, COUNT: 1, SCORE: 2, _LIVE: 2, _KEPT: 1,
        }  # fmt: skip
        path = rng.choices([*shares], [*shares.values()])[0]
        if path in (_LIVE, _KEPT) and sound:  # which may be gone by then
            path = _GENERATE
        if path == _KEPT:
            method, path = self.seen.kept(rng)
            return Drawn(path, b"", "kept", method=method)
        body = copy.deepcopy(self._sound(path))  # of which parts are drawn again
        path = self.seen.live_steering(rng) if path == _LIVE else path
        lot = 0.0 if sound else rng.random()
        if lot < 0.5:
            prompts = body.get("prompt")
            several = len(prompts) if path == _COMPLETIONS and isinstance(prompts, list) else 1
            several = 1 if several > 1 and isinstance(prompts, list) and isinstance(prompts[0], int) else several
            ranked = (body.get("steering") or {}).get("rank")
            each = body.get("n", 1) if ranked is None else ranked.get("keep", 1)
            return Drawn(path, _json(body), "sound", bool(body.get("stream")), several * each)
        if lot < 0.75:
            for _ in range(rng.randint(1, 3)):
                self._mutate(body)
            return Drawn(path, _json(body), "mutated", body.get("stream") is True)
        if lot < 0.9:
            return hostile(rng, path, body)
        return Drawn(path, self._garbage(_json(body)), "garbage")

    def steering(self, method: str) -> dict[str, Any]:
        """A ``steering`` object for ``method`` with options that it has."""
        rng, said = self._rng, self._family["methods"][method]
        steering: dict[str, Any] = {"method": method}
        if said["preference"] == "required" or (said["preference"] == "optional" and rng.random() < 0.3):
            steering["preference"] = self._preference()
        for option in said["options"]:
            if option in said["needs"] or rng.random() < 0.25:
                steering[option] = self._option(option)
        # Two options that make sense only together, and two that make none.
        if "alpha" in steering:
            steering["divergence"] = "alpha"
        elif steering.get("divergence") == "alpha":
            steering["alpha"] = self._option("alpha")
        if steering.get("top_experts", 1) > 1:
            steering.pop("min_stay", None)
        if rng.random() < 0.2:
            steering["trace"] = True
        return steering

    @property
    def methods(self) -> list[str]:
        """The methods that the family can serve."""
        return self._methods

    def prompt(self) -> Any:
        """A text or token ids."""
        if self._rng.random() < 0.7:
            return self._text(20) or "x"
        return [self._rng.randrange(2, self._vocabulary) for _ in range(self._rng.randint(1, 60))]

    def _sound(self, path: str) -> dict[str, Any]:
        rng = self._rng
        if path == _LIVE:
            return {"steering": self._part()}
        if path == SCORE:
            body = score_body(rng, lambda words: self._text(words) or "x", self._vocabulary)
            return body | ({"steering": {"preference": self._preference()}} if rng.random() < 0.7 else {})
        if path == _COEFFICIENTS:
            return {"steering": self.steering(rng.choice(self._methods))}
        if path == _TOKENIZE:
            said = {"messages": [{"role": "user", "content": self._text(6)}]}
            return rng.choice([{"prompt": self._text(20)}, said, {**said, "add_generation_prompt": False}])
        if path == _DETOKENIZE:
            tokens = [rng.randrange(self._vocabulary) for _ in range(rng.randint(0, 30))]
            return {"tokens": tokens, "skip_special_tokens": rng.choice([None, True, False])}
        if path in (MESSAGES, RESPONSES, COUNT):
            body = sound_body(rng, path, lambda words: self._text(words) or "x", self._longest)
            body["model"] = self._model()
            return body | ({"steering": self._watched()} if rng.random() < 0.85 else {})
        body = {"max_tokens": rng.randint(1, self._longest)}
        if path == _CHAT:
            roles = ["system", "user", "assistant", "user"][rng.randint(0, 1) :]
            body["messages"] = [{"role": role, "content": self._text(6)} for role in roles]
        elif path == _COMPLETIONS and rng.random() < 0.2:
            body["prompt"] = [self._text(5) or "x" for _ in range(rng.randint(1, 3))]
        else:
            body["prompt"] = self.prompt()
        if path != _GENERATE or rng.random() < 0.5:
            body["model"] = self._model()
        body |= sampling_fields(rng, body)
        body |= older_fields(rng, self._vocabulary, bool(body.get("stream")))
        if rng.random() < 0.15:
            body.update(self._form())
            body.pop("min_tokens", None)
        if rng.random() < 0.15 and path != _COMPLETIONS:
            body |= {"logprobs": True, "top_logprobs": rng.randint(0, 5)}
        elif rng.random() < 0.15 and path == _COMPLETIONS:
            body["logprobs"] = rng.randint(0, 5)
        if rng.random() < 0.85:
            body["steering"] = self._whole(body)
        return body

    def _whole(self, body: dict[str, Any]) -> dict[str, Any]:
        """``steering`` for an answer to ``body``, some of which changes on the way or chooses among answers."""
        rng = self._rng
        steering = self._watched()
        if rng.random() < 0.12:
            parts = [self._part() for _ in range(rng.randint(1, 3))]
            steering["schedule"] = schedule(rng, parts, body["max_tokens"])
        elif rng.random() < 0.1 and not body.get("stream"):
            body["n"] = rng.randint(2, 4)
            steering["rank"] = rank(rng, body["n"])
        elif rng.random() < 0.1 and body.get("temperature") and not {"monitor", "block_length"} & set(steering):
            steering["search"] = search(rng)
        return steering

    def _watched(self) -> dict[str, Any]:
        """``steering`` for any method, at times with what watches the answer."""
        steering = self.steering(self._rng.choice(self._methods))
        if self._rng.random() < 0.15 and "block_length" not in steering:
            steering["monitor"] = monitor(self._rng, self._judges, self._text)
        return steering

    def _part(self) -> dict[str, Any]:
        """Keys of steering that change within an answer."""
        if self._rng.random() < 0.5:
            return {"preference": self._preference()}
        steering = self.steering(self._rng.choice(self._methods))
        steering.pop("trace", None)
        return steering

    def _model(self) -> str:
        name = self._family["name"]
        if self._rng.random() < 0.8:
            return str(name)
        return f"{name}/bone_soup@{','.join(f'{key}={value}' for key, value in self._preference().items())}"

    def _form(self) -> dict[str, Any]:
        rng = self._rng
        return rng.choice(
            [
                {"response_format": {"type": "json_object"}},
                {
                    "response_format": {
                        "type": "json_schema",
                        "json_schema": {"name": "a", "schema": rng.choice(_SCHEMAS)},
                    }
                },
                {"structured_outputs": {"regex": rng.choice(["[ab]+c", "(x|y){2}", "a{2,", ".*"])}},
                {"structured_outputs": {"choice": ["yes", "no"]}},
                {"structured_outputs": {"json": rng.choice(_SCHEMAS)}},
            ]
        )

    def _option(self, name: str) -> Any:
        """A value that the option ``name`` takes."""
        if name in self._options:
            return self._options[name]()
        kind = OPTIONS[name].kind
        values = kind.names if isinstance(kind, OneOf) else [0, 0.5, 1, 2, 5]
        return self._rng.choice([value for value in values if kind.accepts(value)])

    def _preference(self) -> dict[str, float]:
        objectives = self._family["objectives"]
        chosen = self._rng.sample(objectives, self._rng.randint(1, len(objectives)))
        return {name: self._rng.choice([1, 0.3, self._rng.uniform(0.01, 5)]) for name in chosen}

    def _coefficients(self) -> dict[str, float]:
        rng = self._rng
        chosen = rng.sample(self._members, rng.randint(1, min(3, len(self._members))))
        return {name: rng.choice([0, 1, rng.uniform(-2, 2), rng.choice([1e6, -1e5, 1e-9])]) for name in chosen}

    def _terms(self) -> list[dict[str, Any]]:
        rng = self._rng
        return [
            {
                "source": rng.choice(["base", *self._members, {rng.choice(self._members): rng.uniform(-1, 1)}]),
                "weight": rng.uniform(-2, 2),
                **({"system": self._text(3)} if rng.random() < 0.2 else {}),
            }
            for _ in range(rng.randint(1, 3))
        ]

    def _text(self, words: int) -> str:
        return " ".join(self._rng.choices(_WORDS, k=self._rng.randint(0, words)))

    def _mutate(self, body: dict[str, Any]) -> None:
        """Replace, remove or add one value somewhere in ``body``."""
        rng, place = self._rng, body
        while (
            inner := [value for value in place.values() if isinstance(value, dict) and value]
        ) and rng.random() < 0.5:
            place = rng.choice(inner)
        lot = rng.random()
        if lot < 0.1 and place:
            del place[rng.choice(list(place))]
        elif lot < 0.2:
            strange = ["unknown", "best_of", "trace", "echo", "suffix", "", "method", "weights"]
            place[rng.choice(strange)] = copy.deepcopy(rng.choice(_NASTY))
        elif place:
            place[rng.choice(list(place))] = copy.deepcopy(rng.choice(_NASTY))

    def _garbage(self, body: bytes) -> bytes:
        rng = self._rng
        return rng.choice(
            [
                lambda: body[: rng.randrange(len(body))],
                lambda: rng.randbytes(rng.randint(0, 200)),
                lambda: b"[" * rng.choice([10, 1000, 200_000]),
                lambda: b'{"prompt":' * 5000,
                lambda: body.replace(b"1", b"1e999"),
                lambda: json.dumps(rng.choice(_NASTY)).encode(),
                lambda: body + body,
                lambda: b'{"prompt": "\xff\xfe"}',
            ]
        )()


def _json(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body).encode()
