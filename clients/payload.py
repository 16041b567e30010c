"""From the arguments of a call to the body of a request. What the values mean is for the server to judge."""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from pydantic import BaseModel

from ladle.clients.errors import UsageError
from ladle.steering_options import OPTIONS

Message = Mapping[str, Any]


class Options(TypedDict, total=False):
    """What ``chat`` and ``generate`` take besides the prompt. Whatever is left out, or None, is the server's default.

    Attributes:
        model: a family, a preset, or ``FAMILY[/METHOD][@objective=weight,...]``; the family served, if it is only one.
        preference: weights >= 0 by objective; normalised by the server, which says so.
        target: instead of a preference: the reward that is wanted, as a quantile from 0 to 1 by objective; for families
            that were calibrated (``ladle calibrate``).
        method: ``base``, ``bone_soup``, ``mage``, ...; see ``family(name).methods``.
        strength: scales what the method adds to the base; a number, or one for each kind of value.
        steering: further fields of the ``steering`` object (``value``, ``combine``, ``candidates``, ``terms``, ...);
            ``ladle.steering_options.OPTIONS`` lists all of them with what they do.
        trace: report per-token detail.
        rank: makes ``n`` answers and returns the best, best first, each with its ``score``: what they are judged by,
            ``likelihood``, ``implicit``, ``explicit`` or ``router``, or an object with ``by`` (one of these,
            ``{"ask": a question}`` or ``{"vote": a pattern}``), ``keep`` (how many are returned, default 1) and
            ``per``; not with ``stream``.
        search: draws several continuations block by block and goes on from the best: what texts are judged by,
            ``likelihood``, ``implicit`` or ``explicit``, or an object with ``by``, ``until``, ``draws`` and ``beam``
            (docs/search.md).
        monitor: watches the answer and ends it where it goes wrong, with ``finish_reason`` ``content_filter``: an
            object with ``value`` or ``ask``, ``above``, ``for`` and ``hold`` (docs/monitor.md).
        max_tokens: how many to generate at most.
        temperature, top_p, top_k, min_p: how the next token is drawn; temperature 0 is greedy.
        dynatemp_range, dynatemp_exponent: how far the temperature follows the entropy, up and down, and in what shape.
        n: number of choices.
        stop: one string or several that end the text.
        seed: the same request with the same seed gives the same tokens, as far as docs/reproducibility.md says.
        logprobs: report the tokens with their logprobs even without a trace.
        top_logprobs: how many alternatives to report for each token; needs ``logprobs``.
        logit_bias: added to the score, by token id.
        presence_penalty, frequency_penalty, repetition_penalty: on tokens that occurred already.
        user: for the server's log.
        json_schema: what the answer must fulfil, a JSON schema or a pydantic model; as ``regex``, a pattern for the
            whole answer, and ``choice``, the answers to choose from: one of the three.
        response_format: the same in OpenAI's words: ``{"type": "json_object"}``, ``{"type": "json_schema", ...}``.
        system: of ``chat``, a system message before the others.
        tools, tool_choice, parallel_tool_calls: of ``chat``, functions that the model may call, in OpenAI's words; the
            calls are ``choices[0].tool_calls`` of the answer.
        thinking: tells the thought in front of the answer apart (``choices[0].reasoning_content``) and ends it after so
            many tokens; or an object with ``budget``, ``message``, what comes in front of its closing tag, and
            ``verifier``, ``{"every": 64, "ask": "..."}``: the base is asked on the way whether it holds the answer, and
            ends it if so; ``False`` for none.
        reasoning_effort: instead, a budget that the family has a name for: ``none``, ``low``, ``medium``, ``high``.
        min_tokens: how many to generate at least.
        ignore_eos, stop_token_ids: whether the token that ends a text ends it, and which others do.
        skip_special_tokens, include_stop_str_in_output: what of special tokens and of the stop string is text.
        prompt_logprobs: report the prompt's tokens with as many alternatives.
        add_generation_prompt, continue_final_message, chat_template_kwargs: of ``chat``, how messages are rendered.
    """

    model: str | None
    preference: Mapping[str, float] | None
    target: Mapping[str, float] | None
    method: str | None
    strength: float | Mapping[str, float] | None
    steering: Mapping[str, Any] | None
    trace: bool | None
    rank: str | Mapping[str, Any] | None
    search: str | Mapping[str, Any] | None
    monitor: Mapping[str, Any] | None
    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    dynatemp_range: float | None
    dynatemp_exponent: float | None
    n: int | None
    stop: str | Sequence[str] | None
    seed: int | None
    logprobs: bool | None
    top_logprobs: int | None
    logit_bias: Mapping[str, float] | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    user: str | None
    json_schema: Mapping[str, Any] | type[BaseModel] | None
    regex: str | None
    choice: Sequence[str] | None
    response_format: Mapping[str, Any] | None
    system: str | None
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    thinking: int | Mapping[str, Any] | None
    reasoning_effort: str | None
    min_tokens: int | None
    ignore_eos: bool | None
    stop_token_ids: Sequence[int] | None
    skip_special_tokens: bool | None
    include_stop_str_in_output: bool | None
    prompt_logprobs: int | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None
    chat_template_kwargs: Mapping[str, Any] | None


_STEERING = tuple(name for name in Options.__annotations__ if name in OPTIONS)
"""Arguments that go into ``steering``."""
_STRUCTURE = {"json_schema": "json", "regex": "regex", "choice": "choice"}


def as_messages(prompt: str | Sequence[Message]) -> list[dict[str, Any]]:
    """A string is what the user says; anything else is a conversation already.

    Raises:
        UsageError: neither a string nor a sequence of messages, or an empty one.
    """
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    messages: Sequence[Message] = prompt
    if not isinstance(messages, Sequence) or not messages or not all(isinstance(turn, Mapping) for turn in messages):
        raise UsageError(
            "chat: expected a string or a non-empty list of messages such as {'role': 'user', 'content': '...'}"
        )
    return [dict(turn) for turn in messages]


def generation_body(model: str, prompt: Mapping[str, Any], options: Options, stream: bool) -> dict[str, Any]:
    """The body of ``POST /v1/generate``; ``prompt`` is its ``prompt`` or ``messages`` field.

    Raises:
        UsageError: an unknown option, or one that is given twice.
    """
    unknown = sorted(set(options) - set(Options.__annotations__))
    if unknown:
        raise UsageError(f"unknown option {unknown[0]!r}; known: {', '.join(Options.__annotations__)}")
    given = {key: value for key, value in options.items() if value is not None}
    steering: dict[str, Any] = dict(options.get("steering") or {})
    for key in _STEERING:
        if key in given:
            if key in steering:
                raise UsageError(f"{key!r} is given twice: as an argument and inside steering")
            steering[key] = given[key]
    for key in ("rank", "search"):
        if isinstance(steering.get(key), str):
            steering[key] = {"by": steering[key]}
    body: dict[str, Any] = {"model": model, **prompt}
    if "system" in given:
        if "messages" not in body:
            raise UsageError("system: only with chat; a text that is continued has no system message")
        body["messages"] = [{"role": "system", "content": given["system"]}, *body["messages"]]
    apart = (*_STEERING, *_STRUCTURE, "steering", "model", "system")
    body |= {key: value for key, value in given.items() if key not in apart}
    structure = {field: _schema(given[key]) for key, field in _STRUCTURE.items() if key in given}
    if structure:
        body["structured_outputs"] = structure
    if isinstance(body.get("thinking"), int):
        body["thinking"] = {"budget": body["thinking"]}
    for key in ("stop", "tools", "stop_token_ids"):
        if isinstance(body.get(key), Sequence) and not isinstance(body[key], str):
            body[key] = list(body[key])
    if steering:
        body["steering"] = steering
    if stream:
        body["stream"] = True
    return body


def _schema(value: Any) -> Any:
    """The JSON schema of a pydantic model; anything else as it is."""
    return value.model_json_schema() if isinstance(value, type) and issubclass(value, BaseModel) else value


def lists_tokens(body: Mapping[str, Any]) -> bool:
    """Whether the answer to a ``generation_body`` lists the tokens of its choices."""
    return bool(body.get("logprobs") or body.get("steering", {}).get("trace"))


def change_body(
    preference: Mapping[str, float] | None,
    target: Mapping[str, float] | None,
    method: str | None,
    strength: float | Mapping[str, float] | None,
    steering: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The body of ``POST /v1/generate/{id}/steering``. Raises UsageError for a key that is given twice."""
    given = {"preference": preference, "target": target, "method": method, "strength": strength}
    merged = dict(steering or {})
    for key, value in given.items():
        if value is not None and key in merged:
            raise UsageError(f"{key!r} is given twice: as an argument and inside steering")
        if value is not None:
            merged[key] = value
    return {"steering": merged}


def score_body(
    model: str,
    prompt: str | Sequence[Message],
    texts: Sequence[str | Sequence[int]],
    by: str | Mapping[str, str],
    steering: Mapping[str, Any] | None,
    **options: Any,
) -> dict[str, Any]:
    """The body of ``POST /v1/score``; ``options``: fields of it and of ``steering``, left out where they are None.

    Raises:
        UsageError: texts that are one string, or what is given twice.
    """
    if isinstance(texts, str):
        raise UsageError("texts: expected a list of texts, not one string")
    shown = {"prompt": prompt} if isinstance(prompt, str) else {"messages": as_messages(prompt)}
    given = {key: value for key, value in options.items() if value is not None}
    inside: dict[str, Any] = dict(steering or {})
    for key in _STEERING:
        if key in given:
            if key in inside:
                raise UsageError(f"{key!r} is given twice: as an argument and inside steering")
            inside[key] = given.pop(key)
    sent = [text if isinstance(text, str) else list(text) for text in texts]
    body = {"model": model, **shown, "texts": sent, "by": by, **given}
    return {**body, "steering": inside} if inside else body


def coefficients_body(
    model: str, preference: Mapping[str, float] | None, method: str | None, steering: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The body of ``POST /v1/coefficients``.

    Raises:
        UsageError: preference or method are given twice.
    """
    given = {"method": method, "preference": preference}
    body = {key: value for key, value in given.items() if value is not None}
    if steering is None:
        return {"model": model, **body}
    for key in body:
        if key in steering:
            raise UsageError(f"{key!r} is given twice: as an argument and inside steering")
    return {"model": model, "steering": {**steering, **body}}
