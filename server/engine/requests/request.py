"""What goes into the engine and what comes out of it, one value per token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ladle.guidance.plan import BASE, Plan, PromptView, Source
from ladle.server.engine.grammars.grammar import Grammar
from ladle.server.engine.requests.sampling_params import SamplingParams
from ladle.server.engine.requests.thinking import Thinking


@dataclass(eq=False)
class Work:
    """What the engine has computed for a request, or has begun to. The engine's thread adds to it.

    Attributes:
        tokens: those of all its lanes, those of draws that were not kept, and what was computed twice.
    """

    tokens: int = 0


@dataclass(frozen=True)
class Score:
    """What a plan's ranking says of a whole answer.

    Attributes:
        value: the greater, the better.
        by: what it was judged by.
        parts: (source, what it says) in the order of the ranking's sources: a log-probability in nats, a value, or
            log-odds in nats.
        second: what decides between equal ones; the greater, the better.
    """

    value: float
    by: str
    parts: tuple[tuple[Source, float], ...] = ()
    second: float = 0.0


@dataclass(frozen=True)
class Block:
    """How a block of an answer was chosen.

    Attributes:
        draws: continuations that were drawn of the text before it.
        score: of the text that ends with it, see ``ladle.guidance.plan.Blocks``; None where nothing else was drawn.
        entropy: of the distribution of its first token, in nats; None where it was not asked for.
    """

    draws: int
    score: float | None = None
    entropy: float | None = None


@dataclass(frozen=True)
class Spent:
    """What a search drew, kept or not.

    Attributes:
        draws: continuations.
        tokens: of all of them.
    """

    draws: int
    tokens: int


@dataclass(frozen=True)
class Trip:
    """What ended an answer in its midst.

    Attributes:
        monitor: its name.
        token: how many tokens had been judged when it did, the one that was too much included.
        value: what it said of that token, or of the sentence that ends there.
    """

    monitor: str
    token: int
    value: float


@dataclass(frozen=True)
class CheckedThought:
    """What a verifier said of a thought on its way.

    Attributes:
        token: how many tokens there were, those of tags included.
        likely: the probability that the thought held the answer.
        ends: whether that ended it.
    """

    token: int
    likely: float
    ends: bool


@dataclass(frozen=True)
class GenerationRequest:
    """One sequence to generate: the prompt's token ids, the plan that steers it and how to sample.

    Attributes:
        request_id: unique among the requests of an engine.
        prompt: token ids.
        plan: what steers it.
        sampling: how tokens are drawn.
        views: the prompt's token ids as the plan's sources with a view of their own see it.
        grammar: what the continuation must follow, whatever the plan says of it.
        work: what has been computed for it.
        salt: its state is reused by requests of the same salt only, and theirs by it.
        answer: token ids that the plan's ranking is to judge, where nothing is to be generated.
        thinking: what keeps the thought in front of the answer apart, and short; a grammar is of the answer alone.
    """

    request_id: str
    prompt: tuple[int, ...]
    plan: Plan
    sampling: SamplingParams
    views: Mapping[PromptView, tuple[int, ...]] = field(default_factory=dict)
    grammar: Grammar | None = None
    work: Work = field(default_factory=Work, compare=False)
    salt: bytes = b""
    answer: tuple[int, ...] | None = None
    thinking: Thinking | None = None

    @property
    def computing(self) -> tuple[Source, ...]:
        """The sources that compute something for it: those that write, unless the answer is there, and those that judge
        or watch it, or check its thought."""
        ranking = self.plan.ranking
        if self.answer is not None and ranking:
            return ranking
        monitoring = self.plan.watching + self.plan.asking if self.sampling.max_tokens else ()
        checking = (BASE,) if self.thinking is not None and self.thinking.verifier is not None else ()
        return self.plan.sources + ranking + self.plan.choosing + monitoring + checking

    @property
    def prompt_cost(self) -> int:
        """Tokens that are there already and have to be computed, those that each source sees."""
        sources = self.computing
        return sum(len(self.prompt_of(source)) for source in sources) + len(self.answer or ()) * len(sources)

    def prompt_of(self, source: Source) -> tuple[int, ...]:
        """The token ids that ``source`` continues. Raises KeyError for a view that was not given."""
        return self.prompt if source.view is None else self.views[source.view]


@dataclass(frozen=True)
class TokenTrace:
    """What guidance did at one position.

    Attributes:
        base_logprob: the token's logprob under the plain base, in nats.
        shift: KL(base, final) in nats, infinite where guidance rules out what the base allows.
        argmax_changed: whether the best token of the final score is not the base's.
        entropy: of the combined score's softmax, in nats, before a form of the answer, penalties and temperature.
        outside: whether the best token of the final score lies outside the 20 best of the first source, the base that
            is guided: a sign that base and guide do not fit. None without guidance.
        candidate_mass: the first source's probability of the candidates or of the tokens its mask leaves; None without.
        values: what each explicit value said of the token, by source; None where there are none or the token was no
            candidate.
        router: what the router's head says of every expert, by name; None for plans that do not route.
        monitors: what each monitor that judged the token, or the sentence that ends with it, says; None without
            monitors.
    """

    base_logprob: float
    shift: float
    argmax_changed: bool
    entropy: float
    outside: bool | None = None
    candidate_mass: float | None = None
    values: Mapping[str, float] | None = None
    router: Mapping[str, float] | None = None
    monitors: Mapping[str, float] | None = None


@dataclass(frozen=True)
class PromptToken:
    """What the model would have said where the prompt has a token, in nats of the combined score's log-softmax.

    Attributes:
        logprob: of that token.
        top: (token id, logprob) of the best alternatives, best first.
        rank: of that token; 1 if no other is better.
    """

    logprob: float
    top: tuple[tuple[int, float], ...]
    rank: int = 1


@dataclass(frozen=True)
class Ending:
    """What an output shows where the answer ends with it.

    Attributes:
        text, reasoning, reasoning_tokens: see ``StepOutput``.
    """

    text: str
    reasoning: str | None
    reasoning_tokens: int


@dataclass(frozen=True)
class StepOutput:
    """One generated token of one request.

    Attributes:
        request_id: whose token it is.
        token: its id; -1 where the output has none.
        prompt_tokens, completion_tokens: how many there are of each so far.
        token_text: the text of this token alone, for display.
        text: what may be shown now. Text that could still become a stop string, or half a character, is held back; the
            concatenation of all `text` is the final text.
        logprob: log-softmax of the combined score before temperature and truncation, in nats; with a grammar, among the
            tokens that it allows.
        top: (token id, logprob) of the best alternatives, best first.
        trace: what guidance did, when the plan is traced.
        finish_reason: None until the last output, then "stop", "length", "content_filter" (with `tripped` set), "abort"
            or "error" (with `error` set). The token that hit the end-of-sequence id is included, with `text` empty. A
            grammar that comes to its end is a "stop".
        began: with the first token that another plan gave than the one before, that plan.
        stop: with the last output, the stop string that ended the text; None where something else did.
        cached_tokens: prompt tokens whose state was reused.
        expert: who wrote the token, for plans that route; None for the router itself.
        value: what explicit values say of the text so far, where they were asked about whole blocks.
        entropy: of the distribution of which the token was drawn, in nats, where its sequence asks for it.
        block: with the first token of a block that a search chose, how.
        spent: where an answer is drawn in blocks, what was drawn since the output before.
        score: with the last output, what the plan's ranking says of the answer.
        reasoning: what the token adds to the thought in front of the answer, as ``text`` is what it adds to the answer;
            None for a token of the answer. A tag around the thought adds nothing to either.
        reasoning_tokens: how many tokens of the thought there are so far, without its tags.
        watched: what each of the plan's monitors with a value says of the token before this one, within the engine.
        cut: where text is held back and the plan has monitors, what this output would show if it were the last one,
            within the engine.
        tripped: with the last output, which has no token then, the monitor that ended the answer.
        unseen: how many tokens were written since the output before and are not shown, because a monitor ended the
            answer, which is its last output then, or a verifier the thought.
        asked: how many tokens of questions about the answer were read since the output before, once for yes and once
            for no; and of a thought that is verified, those that were read for it.
        checked: with the last token of a thought that a verifier was asked about, what it said.
        prompt: with the first output, the prompt's tokens after the first one, where they were asked for.
        queued_s: with the first output, how many seconds the sequence waited for its first step; None where it is made
            of several.
    """

    request_id: str
    token: int
    token_text: str
    text: str
    logprob: float
    top: tuple[tuple[int, float], ...]
    trace: TokenTrace | None
    finish_reason: str | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    error: str | None = None
    value: float | None = None
    score: Score | None = None
    expert: str | None = None
    prompt: tuple[PromptToken, ...] | None = None
    queued_s: float | None = None
    stop: str | None = None
    began: Plan | None = None
    reasoning: str | None = None
    reasoning_tokens: int = 0
    watched: tuple[float, ...] = ()
    cut: Ending | None = None
    tripped: Trip | None = None
    unseen: int = 0
    asked: int = 0
    checked: CheckedThought | None = None
    entropy: float | None = None
    block: Block | None = None
    spent: Spent | None = None

    @property
    def base_logprob(self) -> float | None:
        """The token's logprob under the plain base in nats, when the plan is traced."""
        return None if self.trace is None else self.trace.base_logprob

    @property
    def shift(self) -> float | None:
        """KL(base, final) at this position in nats, when the plan is traced."""
        return None if self.trace is None else self.trace.shift
