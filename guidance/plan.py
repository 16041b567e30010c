"""What a request asks for (Steering) and what the engine is to do about it (Plan). Pure data, no tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any, Literal

from ladle.guidance.outcome import Outcome
from ladle.merging.exceptions import InputError
from ladle.merging.preferences.coefficients import Coefficients
from ladle.merging.preferences.preference import Preference
from ladle.nulls import without_unset
from ladle.option_kinds import OptionError
from ladle.steering_options import OPTIONS, SteeringOptions


@dataclass(frozen=True)
class PromptView:
    """How a source sees the prompt, where that differs from what the client sent; the continuation is shared.

    Attributes:
        kind: ``system``: the request with ``text`` as its system message; ``prompt``: ``text`` in place of the whole
            prompt, nothing but the beginning of an answer where it is empty; ``question``: what comes after an answer
            that ``text`` is asked about, and then, one token each, yes and no; ``doubt``: the same after a thought that
            has not ended.
        text: see ``kind``.
        field: what of the request gave the text; None where the family did.
    """

    kind: Literal["system", "prompt", "question", "doubt"]
    text: str
    field: str | None = dataclass_field(default=None, compare=False)

    @property
    def asks(self) -> bool:
        """Whether it comes behind an answer, and is no prompt."""
        return self.kind in ("question", "doubt")


@dataclass(frozen=True)
class Source:
    """What yields next-token logits or, with a ``head``, the values of candidates.

    Attributes:
        name: how responses and traces call it.
        role: ``base``, ``merged``, ``guide``, ``reference``, ``policy``, ``value``, ``router``, ``expert``, ...
        weight: its weight in the combined score, for an expert where it is chosen; 0 for a source that is only reported
            or only routes.
        coefficients: (member, coefficient) of its weights; empty is the plain model.
        model: the model of the family whose weights the coefficients change: a name of ``[[models]]``, or "" for the
            base.
        view: its own view of the prompt.
        head: (member, weight) of the merged scalar head of an explicit value; empty for a language model.
    """

    name: str
    role: str
    weight: float
    coefficients: tuple[tuple[str, float], ...]
    model: str = ""
    view: PromptView | None = None
    head: tuple[tuple[str, float], ...] = ()

    @property
    def plain(self) -> bool:
        """Whether this is the family's base as it is, on the request's own prompt."""
        return not (self.coefficients or self.model or self.view or self.head)


BASE = Source("base", "base", 1.0, ())
"""The family's base as it is."""


@dataclass(frozen=True)
class Mask:
    """Tokens that the first source does not find plausible are ruled out, on its scores as they are (before any
    temperature).

    Attributes:
        kind: ``top_k``: outside its ``value`` best; ``top_p``: outside the smallest set of its best tokens with mass
            >= ``value``; ``relative``: less likely than ``value`` times its best.
        value: see ``kind``.
    """

    kind: Literal["top_k", "top_p", "relative"]
    value: float


@dataclass(frozen=True)
class Scorer:
    """Adds strength * sum_s weight_s f(V_s(z)) over the sources with a head to the ``candidates`` best tokens z of the
    first source.

    Attributes:
        candidates: how many tokens get a value.
        strength: the factor.
        transform: f: ``identity``, or ``log_sigmoid`` for heads that are classifiers.
        centred: subtract the mean over the candidates, so that their mass against the other tokens' stays about what it
            was (methods F4).
        restricted: tokens that are no candidates are ruled out.
    """

    candidates: int
    strength: float
    transform: Literal["identity", "log_sigmoid"] = "identity"
    centred: bool = False
    restricted: bool = False


@dataclass(frozen=True)
class Blocks:
    """An answer in blocks: ``count`` continuations of each text so far are drawn, and of all of them the ``beam`` best
    texts are kept; then the next block.

    The score of a text: ``explicit``: sum_s weight_s V_s over ``sources``, which have a head, at its last token;
    ``implicit``: sum_s weight_s log pi_s(text) over ``sources``, which are language models, each by itself;
    ``likelihood``: the mean over its blocks of the mean log-probability of a block's tokens, as the plan drew them.

    Attributes:
        count: continuations of each text, at most.
        length: tokens per block, at most.
        ends: what ends a block before it has ``length`` tokens: ``sentence``: the end of one; ``punctuation``: that of
            any part of one; None: nothing.
        entropy: (low, high), in nats. As many continuations are drawn as the entropy H of the next token asks for,
            1 + floor((count - 1) clamp((H - low) / (high - low), 0, 1)); where that is one, its next token is kept, and
            the entropy after it asked anew. None: always ``count``.
        beam: texts that are kept.
        by: see above.
        sources: what judges; those that have a head may stand among the plan's own, where they do not write.
        option: of ``steering`` that asked for it.
    """

    count: int
    length: int
    ends: Literal["sentence", "punctuation"] | None = None
    entropy: tuple[float, float] | None = None
    beam: int = 1
    by: Literal["likelihood", "implicit", "explicit"] = "explicit"
    sources: tuple[Source, ...] = ()
    option: str = ""

    def draws(self, entropy: float) -> int:
        """How many continuations a text gets whose next token has this ``entropy``, in nats."""
        if self.entropy is None:
            return self.count
        low, high = self.entropy
        return 1 + int((self.count - 1) * min(1.0, max(0.0, (entropy - low) / (high - low))))


@dataclass(frozen=True)
class Rank:
    """Finished answers get a score, and the best of them are kept.

    Attributes:
        by: ``likelihood``: the log-probability of the answer's tokens as the plan drew them; ``implicit``:
            sum_s weight_s log pi_s(answer) over ``sources``, which are language models, each normalised by itself;
            ``explicit``: sum_s weight_s V_s(answer) over ``sources``, which have a head, at the answer's last token;
            ``router``: log p(answer) of the family's router, the only one of ``sources``; ``ask``: log p(yes) -
            log p(no) after ``text``, which is put to the only one of ``sources``; ``vote``: how many of the answers to
            the prompt say the same as this one, where the pattern ``text`` finds something in it, and among equal ones
            ``likelihood``.
        per: ``answer``, or ``token`` to divide by the answer's tokens.
        keep: how many answers to each prompt are returned.
        sources: empty for ``likelihood`` and ``vote``.
        text: of ``ask`` and ``vote``.
    """

    by: Literal["likelihood", "implicit", "explicit", "router", "ask", "vote"]
    per: Literal["answer", "token"] = "answer"
    keep: int = 1
    sources: tuple[Source, ...] = ()
    text: str = ""

    @property
    def question(self) -> PromptView | None:
        """What is put to the source behind the answer."""
        return PromptView("question", self.text, "steering.rank.by.ask") if self.by == "ask" else None

    @property
    def stated(self) -> str | dict[str, str]:
        """``by`` as a request states it."""
        return {self.by: self.text} if self.by in ("ask", "vote") else self.by


@dataclass(frozen=True)
class Monitor:
    """Ends an answer that is judged badly while it is written, and keeps back what is not judged yet.

    What is judged are the tokens one by one, where there is a ``source``, or else its sentences. With values v_1, v_2,
    ... of them the answer ends at the first t with v_i > above for all i of t - run + 1, ..., t; of what was judged up
    to there, the last ``hold`` are never shown, nor is anything after it.

    Attributes:
        name: of the family's monitor, or of the value.
        above: see above.
        run: how many in a row must be above it; ``for`` in a request.
        hold: see above.
        source: the explicit value that is asked at every token.
        probability: v is the logistic function of what the head gives, because it was trained as a classifier.
        question: what the base is asked after every sentence, in place of ``source``; v is its probability of yes
            against no.
    """

    name: str
    above: float
    run: int = 1
    hold: int = 1
    source: Source | None = None
    probability: bool = False
    question: PromptView | None = None


@dataclass(frozen=True)
class Routing:
    """One of several experts speaks at every token, chosen by a head w = W h + b on the router's last hidden state h:
    S = complement * lp_router + weight * lp_expert, lp = log_softmax (FusionRoute, arXiv 2601.05106).

    Where the plan's ``normalize`` is ``sum``, S is divided by complement + weight. The sources' own weights say the
    same, divided already.

    Attributes:
        source: index of the router in the plan's sources; its head is asked even if its complement is 0.
        head: the name of the family's router, whose head scores the experts.
        experts: indices of the experts in the plan's sources, in the order of the head's rows.
        complement: of the router's log-probabilities; 0 is routing alone.
        weight: of the expert's log-probabilities, > 0.
        top: 1: the expert with the greatest w, the first of equal ones. m > 1: in place of lp_expert
            log sum_i a_i p_i over the m experts with the greatest w, a = softmax of their w (our own option).
        stay: an expert that was switched to is kept for at least this many tokens (our own option); 1 with ``top`` > 1.
        threshold: deferral (Co-LLM, arXiv 2403.03870): where sigmoid(d) of the head's deferral logit d is above it, S
            is as above; elsewhere S is the router's logits as they are. None: every token is routed.
    """

    source: int
    head: str
    experts: tuple[int, ...]
    complement: float = 1.0
    weight: float = 1.0
    top: int = 1
    stay: int = 1
    threshold: float | None = None

    def factors(self, normalize: str) -> tuple[float, float]:
        """(complement, weight) as they count under a plan's ``normalize``."""
        total = self.complement + self.weight if normalize == "sum" else 1.0
        return self.complement / total, self.weight / total


@dataclass(frozen=True)
class Steering(SteeringOptions):
    """The ``steering`` object of a request, its types checked; what the values mean is for the registry to judge.

    Its fields, what they may be and what they do are the rows of ``ladle.steering_options``. Options that a method has
    no use for it refuses.
    """

    @classmethod
    def parse(cls, raw: Mapping[str, Any] | None) -> Steering:
        """Check keys and types; None and absent keys take their defaults, and an unknown key at None asks nothing.

        Raises:
            InputError: field ``steering.<key>``: an unknown key, or a value of the wrong type.
        """
        if raw is None:
            return cls()
        if not isinstance(raw, Mapping):
            raise InputError("steering", raw, "an object")
        # Keys and types here; whether a method has a use for an option, the registry says.
        given = without_unset(raw)
        for key in given:
            if key not in OPTIONS:
                raise InputError(f"steering.{key}", raw[key], f"the keys {', '.join(OPTIONS)}")
        for key, value in given.items():
            try:
                given[key] = OPTIONS[key].kind.parse(value)
            except OptionError as error:
                field = ".".join(("steering", key, *filter(None, [error.path])))
                raise InputError(field, error.value, error.allowed) from None
        return cls(**given)

    def one_strength(self, default: float = 1.0) -> float:
        """The strength of a method that has only one. Raises InputError where two were given."""
        if isinstance(self.strength, Mapping):
            allowed = "one number; a strength for each kind of value needs value both"
            raise InputError("steering.strength", dict(self.strength), allowed)
        return default if self.strength is None else self.strength


@dataclass(frozen=True)
class Plan:
    """One request's way from preference to score.

    Attributes:
        method: the method's registered name.
        preference: the normalised preference, None where the request gave none.
        coefficients: the merge coefficients after normalisation and strength, None for a method that merges nothing.
        sources: in order. The first one is a language model; masks and candidates are taken from it.
        normalize: as requested.
        trace: report per-token detail.
        warnings: for the response.
        rule: how the language models' scores become one: ``linear``, S = sum_i w_i l_i; ``forward_kl``,
            S = -logsumexp_i(-lp_i + ln w_i); ``alpha``, S = -logsumexp_i(-alpha lp_i + ln w_i) / alpha. The latter two
            want weights >= 0.
        alpha: of the rule ``alpha``.
        mask: plausibility mask on the combined score.
        scorer: values of candidates, added to the combined score.
        blocks: the answer is drawn and judged in blocks. Sources with a head write where there is a ``scorer``, and
            elsewhere are among those that judge blocks.
        routing: which of the sources speaks is decided at every token; it goes before ``rule``, and mask and scorer
            are None beside it.
        kl_budget: the most KL(base, final) at a token, in nats; None for no limit.
        target: what each objective is expected to get, where the preference was found for a target.
        schedule: plans that take over from it, in the order in which they do; theirs are empty, and ``blocks`` is None
            in all of them.
        steering: what it was resolved from.
        rank: what finished answers are judged by; ``blocks`` is None beside it.
        monitors: what may end the answer; ``blocks`` is None beside them. Plans that take over have the same ones.
    """

    method: str
    preference: Preference | None
    coefficients: Coefficients | None
    sources: tuple[Source, ...]
    normalize: str
    trace: bool
    warnings: tuple[str, ...]
    rule: Literal["linear", "forward_kl", "alpha"] = "linear"
    alpha: float = 1.0
    mask: Mask | None = None
    scorer: Scorer | None = None
    blocks: Blocks | None = None
    routing: Routing | None = None
    kl_budget: float | None = None
    target: Mapping[str, Outcome] | None = None
    schedule: tuple[ScheduledPlan, ...] = ()
    steering: Steering | None = dataclass_field(default=None, compare=False)
    rank: Rank | None = None
    monitors: tuple[Monitor, ...] = ()

    @property
    def plans(self) -> tuple[Plan, ...]:
        """This one and those that take over from it."""
        return (self, *(part.plan for part in self.schedule))

    @property
    def ranking(self) -> tuple[Source, ...]:
        """The sources that judge finished answers."""
        return () if self.rank is None else self.rank.sources

    @property
    def views(self) -> tuple[PromptView, ...]:
        """The views of the prompt that the sources of all its plans have, those that judge answers and the questions
        of monitors and of the ranking included, each once."""
        sources = (
            source for plan in self.plans for source in (*plan.sources, *plan.ranking, *plan.watching, *plan.choosing)
        )
        asked = None if self.rank is None else self.rank.question
        views = (*(source.view for source in sources), *(monitor.question for monitor in self.monitors), asked)
        return tuple(dict.fromkeys(view for view in views if view is not None))

    @property
    def choosing(self) -> tuple[Source, ...]:
        """The sources that judge blocks of an answer, as far as they are not among ``sources``."""
        return () if self.blocks is None else tuple(s for s in self.blocks.sources if s not in self.sources)

    @property
    def writing(self) -> tuple[Source, ...]:
        """The sources that what is written comes from."""
        return tuple(source for source in self.sources if self.scorer is not None or not source.head)

    @property
    def watching(self) -> tuple[Source, ...]:
        """The explicit values that are asked about every token that was drawn."""
        return tuple(monitor.source for monitor in self.monitors if monitor.source is not None)

    @property
    def asking(self) -> tuple[Source, ...]:
        """The base, where monitors put questions to it about the answer so far."""
        asked = any(monitor.question is not None for monitor in self.monitors)
        return (BASE,) if asked else ()

    @property
    def lanes(self) -> int:
        """How many sources have state while the answer is written."""
        return len(self.sources) + len(self.watching)


@dataclass(frozen=True)
class ScheduledPlan:
    """A plan that takes over once ``start`` tokens of the answer have come."""

    start: int
    plan: Plan
