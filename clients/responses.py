"""What the server answers, typed. Fields that a newer server adds are kept and reachable as attributes."""

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ladle.clients.errors import ResponseError


class Response(BaseModel):
    """Base of all answers: immutable, tolerant of fields this version does not know."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())


class Alternative(Response):
    """A token that could have come instead."""

    id: int
    text: str
    logprob: float


class BegunPart(Response):
    """What steers an answer from a token on."""

    method: str
    preference: dict[str, float] | None = None


class ChosenBlock(Response):
    """How a block was chosen: ``draws`` continuations, the ``score`` of the text that ends with it, and the entropy in
    nats that asked for so many."""

    draws: int
    score: float | None = None
    entropy: float | None = None


class CheckedThought(Response):
    """What a verifier said of a thought: how likely yes was, against no, and whether that ended it."""

    yes: float
    ends: bool


class Token(Response):
    """One generated token.

    Attributes:
        id: in the vocabulary of the base.
        text: what the token adds to the text. A part of a character, or of what may become a stop string, is shown with
            the token that completes it; put together, the texts of a choice's tokens are its text.
        logprob: of the combined score, before temperature and truncation, in nats.
        base_logprob: the same token's under the plain base, in nats; None unless traced.
        shift: KL(base, final) at this position, in nats; None unless traced.
        expert: who was chosen to say it; None for methods that do not route.
        argmax_changed: whether guidance changed which token is the best; None unless traced.
        entropy: of the combined score, in nats; None unless traced.
        outside: whether the best token is not among the 20 best of the base that is guided; None without a guide.
        candidate_mass: the first source's probability of the tokens that could be chosen; None where all could.
        values: what each explicit value said of the token, by source.
        router: the router's score of every expert; None unless traced, or for methods that do not route.
        top: the best alternatives, best first; None unless ``top_logprobs`` asked for them.
        part: what steers from this token on, where what came before was steered otherwise.
        block: how the block that begins with this token was chosen, where blocks were searched for.
        reasoning_content: what the token adds to the thought in front of the answer; None for one of the answer.
        checked: what was said of the thought that ends with this token, where it was verified.
    """

    id: int
    text: str
    logprob: float | None = None
    base_logprob: float | None = None
    shift: float | None = None
    expert: str | None = None
    argmax_changed: bool | None = None
    entropy: float | None = None
    outside: bool | None = None
    candidate_mass: float | None = None
    values: dict[str, float] | None = None
    router: dict[str, float] | None = None
    monitors: dict[str, float] | None = None
    top: list[Alternative] | None = None
    part: BegunPart | None = None
    block: ChosenBlock | None = None
    reasoning_content: str | None = None
    checked: CheckedThought | None = None


class CalledFunction(Response):
    """What is called; ``arguments`` is a JSON object as text."""

    name: str
    arguments: str


class ToolCall(Response):
    """A call, as the next ``chat`` takes it back: of a function, or of a custom tool by ``name`` and ``input``."""

    id: str
    type: str = "function"
    function: CalledFunction | None = None
    custom: dict[str, str] | None = None


class Choice(Response):
    """One continuation.

    Attributes:
        finish_reason: why it ended, such as ``stop``, ``length`` or ``content_filter``.
        score: what it was ranked by; None unless answers were ranked.
        tokens: token by token; None unless the request asked for a trace or logprobs.
        reasoning_content: the thought in front of the text, where thoughts are told apart.
        tool_calls: the functions that it calls; None where it calls none.
    """

    index: int = 0
    text: str = ""
    finish_reason: str | None = None
    score: float | None = None
    tokens: list[Token] | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = None


class CompletionTokensDetails(Response):
    """How many of the tokens stand between the tags of thoughts."""

    reasoning_tokens: int


class Usage(Response):
    """Tokens counted over all choices of a request; the details only where thoughts are told apart."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int | None = None
    completion_tokens_details: CompletionTokensDetails | None = None


class Source(Response):
    """What took part in the score.

    Attributes:
        role: ``base``, ``merged``, ``guide``, ``reference``, ``policy``, ``value``, ``router``, ``expert``, ...
        coefficients: of the members that its own weights were merged from, by name.
        model: the name of another model than the base; None for the base.
        prompt: a view of the prompt of its own; None where it sees the request's.
        head: the weights of the heads that were merged for an explicit value, by member.
    """

    name: str
    role: str
    weight: float
    coefficients: dict[str, float] = Field(default_factory=dict)
    model: str | None = None
    prompt: dict[str, str] | None = None
    head: dict[str, float] = Field(default_factory=dict)


class Diagnostics(Response):
    """The traces of an answer summed up.

    Attributes:
        tokens: how many were traced.
        mean_shift: mean KL(base, final), in nats.
        argmax_changed: share of tokens whose best one guidance changed.
        outside: share of tokens whose best one was not among the guided base's 20 best; None without a guide.
    """

    tokens: int
    mean_shift: float
    argmax_changed: float
    outside: float | None = None


class Outcome(Response):
    """What a target is expected to come to for one objective.

    Attributes:
        wanted: the quantile that was asked for; None for an objective that was left free.
        quantile: what is expected, as a quantile of the rewards that calibration saw.
        low: ``quantile`` less two standard errors.
        high: ``quantile`` and two standard errors.
        reward: the mean reward that is expected.
    """

    wanted: float | None = None
    quantile: float
    low: float
    high: float
    reward: float


class SteeringPart(Response):
    """A part of an answer whose steering changed on the way; ``starts``: the index of its first token in each choice,
    None where it has none."""

    starts: list[int | None]
    method: str
    preference: dict[str, float] | None = None
    coefficients: dict[str, float] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)


class Stopped(Response):
    """An answer that a monitor ended: the choice, the monitor, how many tokens it had judged when it did, and what it
    said of the last of them, or of the sentence that ends there."""

    index: int
    name: str
    token: int
    value: float


class WatchReport(Response):
    """What watched an answer: ``monitors`` as they were in force, and the choices that were ended by them."""

    monitors: list[dict[str, Any]]
    stopped: list[Stopped]


class SteeringReport(Response):
    """How a request was steered, as the server understood it. Where steering changed on the way, all but ``parts`` is
    of the first plan.

    Attributes:
        preference: weights by objective, normalised to sum 1 whatever the request said; with a target, what was found.
        base_share: 1 minus the sum of the coefficients.
        target: what is expected of the preference that was found for a target, by objective.
        routing: the options of a method that routes.
        experts: the share of tokens that each expert wrote.
        parts: what steered from where on, where steering changed.
        rank: what answers were judged by.
        search: how answers were searched block by block, and what was drawn for each of them.
        monitor: what watched the answers, and which it ended.
        thoughts: of the choices whose thought was verified, how often, and after how many tokens that ended it.
        diagnostics: traces summed up; None without a trace.
    """

    method: str
    preference: dict[str, float] | None = None
    coefficients: dict[str, float] | None = None
    base_share: float | None = None
    normalize: str | None = None
    sources: list[Source] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    target: dict[str, Outcome] | None = None
    routing: dict[str, float | None] | None = None
    experts: dict[str, float] | None = None
    parts: list[SteeringPart] | None = None
    rank: dict[str, Any] | None = None
    search: dict[str, Any] | None = None
    monitor: WatchReport | None = None
    thoughts: list[dict[str, Any]] | None = None
    diagnostics: Diagnostics | None = None


class SteeringChange(Response):
    """What ``steer`` did: ``steering`` is in force from now on, and ``tokens`` says how many each choice had before;
    None for one that had ended.
    """

    id: str
    tokens: list[int | None]
    steering: SteeringReport


class Generation(Response):
    """A complete answer to ``generate`` or ``chat``. The same request with the same ``seed`` gives it again,
    on the servers that docs/reproducibility.md names."""

    id: str
    model: str
    created: int
    seed: int | None = None
    choices: list[Choice]
    usage: Usage | None = None
    steering: SteeringReport | None = None

    @property
    def text(self) -> str:
        """The text of the first choice."""
        return self.choices[0].text

    @property
    def tokens(self) -> list[Token] | None:
        """The tokens of the first choice; None unless the request asked for a trace or logprobs."""
        return self.choices[0].tokens

    @property
    def tool_calls(self) -> list[ToolCall]:
        """The calls of the first choice."""
        return self.choices[0].tool_calls or []

    @property
    def message(self) -> dict[str, Any]:
        """The first choice as a message to put into the next ``chat``."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.choices[0].reasoning_content is not None:
            message["reasoning_content"] = self.choices[0].reasoning_content
        if self.tool_calls:
            message["tool_calls"] = [call.model_dump(exclude_none=True) for call in self.tool_calls]
        return message


class StreamToken(Response):
    """One event of a stream: a token of choice ``index``."""

    index: int
    token: Token

    @property
    def text(self) -> str:
        """What may be shown now; empty while half a character, or what may become a stop string, is held back."""
        return self.token.text

    @property
    def reasoning(self) -> str:
        """What of the thought in front of the answer may be shown now."""
        return self.token.reasoning_content or ""


class ScorePart(Response):
    """What one source says of a text: a log-probability in nats, or an explicit value; and its weight."""

    name: str
    weight: float
    value: float


class ScoredText(Response):
    """How good the text ``index`` of a request is: the greater ``score``, the better. ``parts`` are empty where it is
    the text's log-probability.
    """

    index: int
    score: float
    tokens: int
    parts: list[ScorePart] = Field(default_factory=list)


class Scores(Response):
    """The answer to ``score``, in the order of the texts."""

    id: str
    model: str
    created: int
    scores: list[ScoredText]
    usage: Usage | None = None
    steering: SteeringReport | None = None


class CoefficientsReport(Response):
    """What a preference becomes, without generating anything.

    Attributes:
        base_share: 1 minus the sum of the coefficients.
        condition: condition number of the backbone-reward matrix; None for methods that solve nothing.
        l1: sum of absolute coefficients: how much rounding of the members is amplified.
    """

    method: str
    preference: dict[str, float] | None = None
    coefficients: dict[str, float] | None = None
    base_share: float | None = None
    sources: list[Source] = Field(default_factory=list)
    condition: float | None = None
    l1: float | None = None
    warnings: list[str] = Field(default_factory=list)


T = TypeVar("T", bound=Response)


def parse(kind: type[T], body: Any) -> T:
    """Read an answer.

    Raises:
        ResponseError: it lacks what the contract promises; the message names the first such field.
    """
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"]) or "body"
        raise ResponseError(f"unexpected answer from the server: {path}: {first['msg']}") from error


def parse_list(kind: type[T], body: Any) -> list[T]:
    """Read a list in OpenAI's envelope, ``{"object": "list", "data": [...]}``."""
    if not isinstance(body, dict) or not isinstance(body.get("data"), list):
        raise ResponseError("unexpected answer from the server: no list under 'data'")
    return [parse(kind, entry) for entry in body["data"]]
