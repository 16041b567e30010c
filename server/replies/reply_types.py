"""The shapes of responses, for the type checker and for /docs. Ours beyond OpenAI's: ``steering``, ``seed``."""

from __future__ import annotations

from typing import NotRequired

from typing_extensions import TypedDict

from ladle.server.replies.calls import ToolCallReply
from ladle.server.replies.monitors import WatchReply
from ladle.server.replies.parts import BegunPart, SteeringPart
from ladle.server.replies.search import BlockReply, SearchReply
from ladle.server.replies.sources import SourceReply
from ladle.server.replies.thoughts import CheckedReply, VerifiedChoice
from ladle.server.replies.usage import Usage


class Diagnostics(TypedDict):
    """Traces summed up over an answer: tokens seen, mean KL(base, final) in nats, share of tokens whose best one
    guidance changed, and share of tokens whose best one was not among the guided base's 20 best (null without a guide).
    """

    tokens: int
    mean_shift: float
    argmax_changed: float
    outside: float | None


class RoutingReply(TypedDict):
    """How experts take turns: the options of a method that routes, those of its own that the request left out among
    them. ``threshold`` is null where every token has an expert."""

    complement: float
    expert_weight: float
    top_experts: int
    min_stay: int
    threshold: float | None


class RankReply(TypedDict):
    """How finished answers were judged, ``by`` as the request states it; ``sources`` is empty for ``likelihood`` and
    a vote."""

    by: str | dict[str, str]
    per: str
    keep: NotRequired[int]
    sources: list[SourceReply]


class OutcomeReply(TypedDict):
    """What a target is expected to come to for one objective, as quantiles of the rewards that calibration saw, with
    two standard errors around; ``wanted`` is null for an objective that was left free, ``reward`` the mean reward."""

    wanted: float | None
    quantile: float
    low: float
    high: float
    reward: float


class SteeringReply(TypedDict):
    """What steered the answer. With a ``target``, ``preference`` is the one that was found for it. Where experts take
    turns, ``routing`` says by which options and ``experts`` what share of the tokens each of them wrote; what is
    missing to 1 the router wrote. ``search`` says how blocks were chosen and what was drawn for it. ``monitor`` is
    there where the answer was watched, ``thoughts`` where one was verified. Where the steering changed on the way,
    ``parts`` says what steered from where on, and the rest is of the plan that the answer began with. With a trace
    there are ``diagnostics``, and in OpenAI's answers ``choices`` with the traced tokens."""

    method: str
    preference: dict[str, float] | None
    coefficients: dict[str, float]
    base_share: float
    normalize: str
    sources: list[SourceReply]
    warnings: list[str]
    target: NotRequired[dict[str, OutcomeReply]]
    routing: NotRequired[RoutingReply]
    experts: NotRequired[dict[str, float]]
    parts: NotRequired[list[SteeringPart]]
    rank: NotRequired[RankReply]
    search: NotRequired[SearchReply]
    monitor: NotRequired[WatchReply]
    thoughts: NotRequired[list[VerifiedChoice]]
    diagnostics: NotRequired[Diagnostics]
    choices: NotRequired[list[TracedChoice]]


class TopLogprob(TypedDict):
    """An alternative at one position; ``bytes`` is exact where a token is part of a character."""

    token: str
    bytes: list[int]
    logprob: float


class TokenLogprob(TopLogprob):
    """A generated token with alternatives, best first."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    """OpenAI's chat form; the token that ends a text is left out, as it is no content."""

    content: list[TokenLogprob]
    refusal: None


class ChatMessage(TypedDict):
    """The assistant's answer; ``content`` is null where it only calls functions. ``reasoning_content``, where thoughts
    are told apart, is the one in front of it, or null."""

    role: str
    content: str | None
    reasoning_content: NotRequired[str | None]
    refusal: None
    tool_calls: NotRequired[list[ToolCallReply]]


class ChatChoice(TypedDict):
    """One choice of a chat completion; ``score`` with ``steering.rank``, best first."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str
    score: NotRequired[float]


class PromptLogprob(TypedDict):
    """What the model would have said of one token at one place of the prompt; ``rank`` 1 is the best."""

    logprob: float
    rank: int
    decoded_token: str


class ChatCompletion(TypedDict):
    """Answer of ``POST /v1/chat/completions``."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    steering: SteeringReply
    prompt_logprobs: NotRequired[list[dict[str, PromptLogprob] | None]]


class ChatDelta(TypedDict, total=False):
    """What a chunk adds."""

    role: str
    content: str | None
    reasoning_content: str
    tool_calls: list[ToolCallReply]


class ChatChunkChoice(TypedDict):
    """One choice's part of a chunk."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class ChatChunk(TypedDict):
    """One event of a streamed chat completion; the last one carries ``steering``."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: NotRequired[Usage | None]
    steering: NotRequired[SteeringReply]


class CompletionLogprobs(TypedDict):
    """OpenAI's legacy form; offsets count characters of the choice's text. An echoed prompt's first token has no
    logprobs: nothing comes before it."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(TypedDict):
    """One choice of a completion, or its part of a chunk; ``score`` with ``steering.rank``, best first."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    score: NotRequired[float]
    prompt_logprobs: NotRequired[list[dict[str, PromptLogprob] | None]]


class Completion(TypedDict):
    """Answer of ``POST /v1/completions``, and one event of it when streamed."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: NotRequired[Usage | None]
    steering: NotRequired[SteeringReply]


class Alternative(TypedDict):
    """A token that could have come instead."""

    id: int
    text: str
    logprob: float


class Token(TypedDict):
    """One generated token.

    ``text`` is what the token adds to the choice's text, so the texts joined are that text: a part of a character, or
    of what may become a stop string, is shown with the token that completes it. ``base_logprob`` is the token's logprob
    under the base and ``shift`` KL(base, final) in nats; both are null without a trace. ``expert`` is the expert that
    gave it, or null. ``top`` is there when alternatives were asked for.

    With a trace: ``argmax_changed``, whether guidance changed the best token; ``entropy``, of the combined score, in
    nats; ``outside``, whether that token is not among the 20 best of the base that is guided (null without a guide);
    ``candidate_mass``, the probability under the first source of the candidates or of what its mask leaves; ``values``,
    what each explicit value said of the token; ``router``, the router's score of every expert, where a method routes;
    ``monitors``, what each monitor said of the token, or of the sentence that ends with it, where there are any.
    ``part``: with the first token of a part of the answer that is steered otherwise than what came before, its method
    and preference. ``block``: with the first token of a block that was searched for, how it was chosen.
    ``reasoning_content``: of a token that is none of the answer, what it adds to the thought in front of it, which for
    a tag is nothing. ``checked``: with a token at which the thought was verified, what that said.
    """

    id: int
    text: str
    logprob: float
    base_logprob: float | None
    shift: float | None
    expert: str | None
    argmax_changed: NotRequired[bool]
    entropy: NotRequired[float]
    outside: NotRequired[bool | None]
    candidate_mass: NotRequired[float | None]
    values: NotRequired[dict[str, float] | None]
    router: NotRequired[dict[str, float]]
    monitors: NotRequired[dict[str, float]]
    top: NotRequired[list[Alternative]]
    part: NotRequired[BegunPart]
    block: NotRequired[BlockReply]
    reasoning_content: NotRequired[str]
    checked: NotRequired[CheckedReply]


class TracedChoice(TypedDict):
    """The traced tokens of one choice."""

    index: int
    tokens: list[Token]


class GeneratedChoice(TypedDict):
    """One choice; ``tokens`` is there with a trace or logprobs, ``score`` with ``steering.rank``, best first,
    ``reasoning_content`` where thoughts are told apart: the one in front of the text, or null.

    A stream's last event leaves ``text`` out, unless there are ``tool_calls``, beside which it is what is no call."""

    index: int
    text: NotRequired[str]
    reasoning_content: NotRequired[str | None]
    finish_reason: str
    score: NotRequired[float]
    tokens: NotRequired[list[Token]]
    tool_calls: NotRequired[list[ToolCallReply]]


class Generated(TypedDict):
    """Answer of ``POST /v1/generate``, and the last event of it when streamed. The same ``seed`` gives it again."""

    id: str
    object: str
    model: str
    created: int
    seed: int
    choices: list[GeneratedChoice]
    usage: Usage
    steering: SteeringReply
    prompt_logprobs: NotRequired[list[dict[str, PromptLogprob] | None]]


class TokenEvent(TypedDict):
    """One event of a streamed generation."""

    index: int
    token: Token


class SteeringChange(TypedDict):
    """Answer of ``POST /v1/generate/{id}/steering``: what steers from now on, and ``tokens``, how many each choice had
    before; null for one that had ended."""

    id: str
    object: str
    tokens: list[int | None]
    steering: SteeringReply


class CoefficientsReply(TypedDict):
    """Answer of ``POST /v1/coefficients``."""

    method: str
    preference: dict[str, float] | None
    coefficients: dict[str, float]
    base_share: float
    sources: list[SourceReply]
    condition: float | None
    l1: float
    warnings: list[str]
    rank: NotRequired[RankReply]
    monitor: NotRequired[WatchReply]


class ModelReply(TypedDict):
    """One model in OpenAI's form; ``max_model_len`` is the longest prompt plus answer, in tokens."""

    id: str
    object: str
    created: int
    owned_by: str
    max_model_len: int


class ModelList(TypedDict):
    """Answer of ``GET /v1/models``."""

    object: str
    data: list[ModelReply]


class ErrorBody(TypedDict):
    """What went wrong; ``param`` is the path of the field."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(TypedDict):
    """Answer of anything that fails."""

    error: ErrorBody


class Tokenized(TypedDict):
    """Answer of ``POST /tokenize``; ``token_strs`` shows U+FFFD for a part of a character."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(TypedDict):
    """Answer of ``POST /detokenize``."""

    prompt: str
