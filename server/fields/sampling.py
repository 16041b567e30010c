"""The request fields that say how to sample, shared by all generating endpoints, and what the engine makes of them."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from ladle.guidance.plan import Steering
from ladle.merging.exceptions import InputError
from ladle.nulls import UNSET, nullable
from ladle.server.engine.requests.sampling_params import SamplingParams
from ladle.server.fields.output_format import OutputFields
from ladle.server.http.strict_model import StrictModel
from ladle.steering_options import OPTIONS

MAX_CHOICES = 128  # sequences one request may ask for
MAX_TOP_LOGPROBS = 20
_MAX_STOPS = 16  # OpenAI takes 4; evaluation harnesses send more
_MAX_STOP_LENGTH = 512  # characters; what may be held back from a stream, and searched for at every token
_MAX_STOP_IDS = 1024
_MAX_BIASES = 4096  # validating as many takes a millisecond or two
_MAX_SALT = 256
_SEED_RANGE = 1 << 63
_T = TypeVar("_T", int, float)


def _stops(value: Any) -> Any:
    """``stop`` as a list."""
    stops = [value] if isinstance(value, str) else value
    if stops is None:
        return []
    if not isinstance(stops, list) or len(stops) > _MAX_STOPS:
        raise ValueError(f"allowed: a string or a list of at most {_MAX_STOPS} strings")
    for stop in stops:
        if not isinstance(stop, str) or not 1 <= len(stop) <= _MAX_STOP_LENGTH:
            raise ValueError(f"allowed: strings of 1 to {_MAX_STOP_LENGTH} characters")
    return stops


def _few_biases(value: Any) -> Any:
    """Refuse what is too much before each of it is looked at."""
    if isinstance(value, dict) and len(value) > _MAX_BIASES:
        raise ValueError(f"allowed: at most {_MAX_BIASES} token ids, not {len(value)}")
    return value


def _token_ids(value: dict[str, float]) -> dict[str, float]:
    for key, bias in value.items():
        if not (len(key) <= 10 and key.isascii() and key.isdecimal() and str(int(key)) == key):
            raise ValueError(f"allowed: token ids as keys, which {key[:40]!r} is not")
        if not -100 <= bias <= 100:
            raise ValueError(f"{key}: allowed: numbers from -100 to 100, which {bias!r} is not")
    return value


def _steering(value: dict[str, Any]) -> dict[str, Any]:
    """Check keys and types now, so that they are reported with the other fields; meanings are for the registry."""
    Steering.parse(value)
    return value


_STEERING_SCHEMA = {
    "type": "object",
    "description": "How to steer. Which options a method understands: GET /v1/families/{name} and the documentation.",
    "additionalProperties": UNSET,
    "properties": {
        name: nullable({"description": option.text, **option.kind.schema()}) for name, option in OPTIONS.items()
    },
}
_STOP: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": _MAX_STOP_LENGTH}
_STOP_SCHEMA = {"anyOf": [_STOP, {"type": "array", "items": _STOP, "maxItems": _MAX_STOPS}, {"type": "null"}]}
_BIAS_SCHEMA = {
    "type": "object",
    "maxProperties": _MAX_BIASES,
    "propertyNames": {"pattern": "^(0|[1-9][0-9]{0,9})$"},
    "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
}

SteeringField = Annotated[dict[str, Any], AfterValidator(_steering), WithJsonSchema(_STEERING_SCHEMA)]
StopField = Annotated[list[str], BeforeValidator(_stops), WithJsonSchema(_STOP_SCHEMA)]
LogitBias = Annotated[
    dict[str, float], AfterValidator(_token_ids), BeforeValidator(_few_biases), WithJsonSchema(_BIAS_SCHEMA)
]
ModelField = Annotated[
    Annotated[str, Field(min_length=1, max_length=4096)] | None,
    Field(
        description="FAMILY[/METHOD][@objective=weight,...] or a preset; default: the served family",
        examples=["demo", "demo@positive=0.8,concise=0.2"],
    ),
]
Penalty = Annotated[float, Field(ge=-2, le=2)]
MaxTokens = Annotated[int, Field(ge=1)]
StopIds = Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(max_length=_MAX_STOP_IDS, fail_fast=True)]
CacheSalt = Annotated[
    Annotated[str, Field(min_length=1, max_length=_MAX_SALT)],
    Field(description="the state of the prompt is shared with requests of the same salt only; extension"),
]
TopLogprobs = Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)]


_DEFAULT = "default: the family's, else 1"


class SteeredFields(StrictModel):
    """Who answers, how it is steered and how it is sampled, on every generating endpoint. null means the default
    everywhere, as in OpenAI's API."""

    model: ModelField = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(None, description=f"{_DEFAULT}; 0 is greedy")
    top_p: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description=f"{_DEFAULT}; 0 is greedy")
    dynatemp_range: Annotated[float, Field(ge=0, le=2)] | None = Field(
        None, description="the temperature follows the entropy, by so much up and down; 0 is off; extension"
    )
    dynatemp_exponent: Annotated[float, Field(gt=0, le=10)] | None = Field(
        None, description="of the share of the greatest entropy, with dynatemp_range; default 1; extension"
    )
    stream: bool | None = None
    seed: Annotated[int, Field(ge=-_SEED_RANGE, lt=_SEED_RANGE)] | None = Field(None, description="default: a new one")
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    top_k: Annotated[int, Field(ge=-1, le=1 << 31)] | None = Field(None, description="0 and -1 are off; extension")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = Field(None, description="extension")
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = Field(None, description="1 is off; extension")
    min_tokens: Annotated[int, Field(ge=0)] | None = Field(
        None, description="nothing ends an answer before it has so many tokens; extension"
    )
    ignore_eos: bool | None = Field(None, description="go on after the token that ends a text; extension")
    steering: SteeringField | None = None
    cache_salt: CacheSalt | None = None

    def steered(self) -> dict[str, Any]:
        """These fields by name."""
        return {name: getattr(self, name) for name in SteeredFields.model_fields}


class SamplingFields(OutputFields, SteeredFields):
    """Sampling fields of a request to an endpoint that knows OpenAI's older ones."""

    max_tokens: MaxTokens | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: StopField = Field([], validate_default=False)
    logit_bias: LogitBias | None = Field(None, description="token id -> bias from -100 to 100")
    user: str | None = None
    prompt_logprobs: TopLogprobs | None = Field(
        None, description="report the prompt's tokens with as many alternatives; not with stream; extension"
    )
    stop_token_ids: StopIds | None = Field(None, description="tokens that end the text; extension")
    skip_special_tokens: bool | None = Field(
        None, description="default true; false shows special tokens by their names, but for the last; extension"
    )
    include_stop_str_in_output: bool | None = Field(
        None, description="the text holds what ended it, a stop string or a token of stop_token_ids; extension"
    )

    @model_validator(mode="after")
    def _whole_or_streamed(self) -> SamplingFields:
        if self.prompt_logprobs is not None and self.stream:
            raise InputError("prompt_logprobs", self.prompt_logprobs, reason="they are not streamed")
        return self

    @property
    def limit(self) -> tuple[str, int | None]:
        """What the limit of the answer is called, and how many tokens it is; None for the server's own."""
        return "max_tokens", self.max_tokens

    @property
    def choices(self) -> int:
        """How many continuations a prompt gets."""
        return self.n or 1

    def sampling(
        self,
        max_tokens: int,
        seed: int,
        vocabulary: int,
        logprobs: int | None,
        defaults: Mapping[str, float] = MappingProxyType({}),
    ) -> SamplingParams:
        """What the engine gets.

        Args:
            max_tokens: the limit that applies, the request's own or the default.
            seed: of this choice.
            vocabulary: number of token ids.
            logprobs: how many alternatives to report; None for none.
            defaults: the family's, by field, for fields that the request leaves out.

        Raises:
            InputError: ``logit_bias`` or ``stop_token_ids`` names a token that does not exist, or ``min_tokens`` is
                more than may come.
        """
        given: Mapping[str, float] = self.logit_bias or {}
        for token in self.stop_token_ids or ():
            if token >= vocabulary:
                raise InputError("stop_token_ids", token, f"token ids from 0 to {vocabulary - 1}")
        if (self.min_tokens or 0) > max_tokens:
            raise InputError("min_tokens", self.min_tokens, f"at most {max_tokens}, the most tokens that may come")
        for key, bias in given.items():
            if int(key) >= vocabulary:
                raise InputError(f"logit_bias.{key}", bias, f"token ids from 0 to {vocabulary - 1}")

        def drawn(name: str, neutral: float) -> float:
            return _or(getattr(self, name), _or(defaults.get(name), neutral))

        top_p = drawn("top_p", 1.0)
        # The smallest set of tokens that holds a probability of 0 is the best one alone.
        temperature = 0.0 if top_p == 0 else drawn("temperature", 1.0)
        spread = self.dynatemp_range or 0.0
        if spread and temperature == 0:
            raise InputError("dynatemp_range", spread, reason="decoding is greedy: there is no temperature to change")
        # llama.cpp's clients send its defaults, a range of 0 and an exponent of 1, with every request.
        if self.dynatemp_range is None and self.dynatemp_exponent not in (None, 1):
            reason = "it applies only with a dynatemp_range"
            raise InputError("dynatemp_exponent", self.dynatemp_exponent, reason=reason)
        return SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature,
            dynatemp_range=spread,
            dynatemp_exponent=_or(self.dynatemp_exponent, 1.0),
            top_p=top_p or 1.0,
            top_k=max(0, int(drawn("top_k", 0))),
            min_p=drawn("min_p", 0.0),
            repetition_penalty=drawn("repetition_penalty", 1.0),
            presence_penalty=drawn("presence_penalty", 0.0),
            frequency_penalty=drawn("frequency_penalty", 0.0),
            logit_bias=tuple((int(key), bias) for key, bias in given.items()),
            stop=tuple(self.stop),
            seed=seed,
            logprobs=logprobs,
            prompt_alternatives=self.prompt_logprobs or 0,
            min_tokens=self.min_tokens or 0,
            ignore_eos=bool(self.ignore_eos),
            stop_token_ids=frozenset(self.stop_token_ids or ()),
            skip_special_tokens=self.skip_special_tokens is not False,
            include_stop=bool(self.include_stop_str_in_output),
        )


def new_seed() -> int:
    """A fresh seed; 32 bits, so that every JSON reader gives it back exactly."""
    return secrets.randbits(32)


def choice_seed(seed: int, choice: int) -> int:
    """The seed of one of the n choices of a prompt. Choice 0 uses the request's own, so that n only adds choices;
    which prompt of several it belongs to does not matter, so that prompts do not depend on their company."""
    if choice == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}:{choice}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value
