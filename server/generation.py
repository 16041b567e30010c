"""One HTTP request's sequences in the engine: several may run side by side, and they end together."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace

from ladle.guidance.plan import Plan
from ladle.merging.exceptions import InputError, code_of
from ladle.server.access.callers import ANYONE, Caller, Meter
from ladle.server.api_errors import ApiError, Overflow, context_overflow, from_queue_full, unavailable
from ladle.server.engine.grammars.grammar import Grammar
from ladle.server.engine.kv.cache import BLOCK_SIZE
from ladle.server.engine.requests.queue import QueueFull
from ladle.server.engine.requests.request import GenerationRequest, StepOutput
from ladle.server.engine.requests.sampling_params import SamplingParams
from ladle.server.engine.requests.thinking import Thinking
from ladle.server.fields.sampling import SamplingFields, choice_seed, new_seed
from ladle.server.job_record import JobRecord
from ladle.server.live_answers import LiveAnswer, cost_of, require_few_parts, token_cost
from ladle.server.prompts import Prompt
from ladle.server.replies.choices import Choice, voted
from ladle.server.replies.usage import Usage, token_counts
from ladle.server.serving import Serving
from ladle.server.settings import ServerSettings
from ladle.server.state import ServerState
from ladle.server.steering import check_rank, check_search, sampling_defaults

logger = logging.getLogger(__name__)

_CHECK_SECONDS = 1.0  # how often a silent engine is looked at
_GRACE_SECONDS = 0.25  # how long a stream waits for a refusal, which is still an HTTP status, before it begins


@dataclass(frozen=True)
class Job:
    """What one HTTP request wants generated.

    Attributes:
        plan: what steers it.
        prompts: what is continued.
        choices: continuations of each prompt, prompt by prompt.
        seed: of choice 0; those of the others follow from it.
        requests: one per continuation.
        caller: whose request it is.
        meter: what has been paid for reading the prompts already; None where nothing has.
        id: what the ids of its replies end with.
    """

    plan: Plan
    prompts: tuple[Prompt, ...]
    choices: int
    seed: int
    requests: tuple[GenerationRequest, ...]
    caller: Caller = ANYONE
    meter: Meter | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompts, each once, however many choices it has, and of texts that are only judged."""
        return sum(map(len, self.prompts)) + sum(len(request.answer or ()) for request in self.requests)

    @property
    def thinks(self) -> bool:
        """Whether thoughts in front of the answers are told apart."""
        return self.requests[0].thinking is not None

    @property
    def kept(self) -> int:
        """How many choices of each prompt are returned."""
        return self.choices if self.plan.rank is None else self.plan.rank.keep

    @property
    def prompt_cost(self) -> int:
        """Tokens that its prompts are charged as: those that each source sees, and texts that are only judged."""
        firsts = self.requests[:: self.choices]
        texts = sum(len(request.answer or ()) * len(request.computing) for request in self.requests)
        return sum(len(request.prompt_of(source)) for request in firsts for source in request.computing) + texts

    def computed(self) -> int:
        """Tokens that the engine has computed for it so far, those of all lanes."""
        return sum(request.work.tokens for request in self.requests)


def make_job(
    state: ServerState,
    serving: Serving,
    plan: Plan,
    prompts: Sequence[Prompt],
    fields: SamplingFields,
    max_tokens: int | None,
    logprobs: int | None,
    limit_field: str = "max_tokens",
    grammar: Grammar | None = None,
    stop: tuple[str, ...] = (),
    prompt_logprobs: bool = False,
    caller: Caller = ANYONE,
    meter: Meter | None = None,
    thinking: Thinking | None = None,
) -> Job:
    """Turn a validated request into engine requests.

    Args:
        max_tokens: the request's own limit; None means what the context leaves, at most ``default_max_tokens``.
        limit_field: what the request called it.
        grammar: what every continuation must follow.
        stop: ends it beside the request's own stop strings.
        prompt_logprobs: whether the prompt's own tokens are to be judged too.
        caller: who asks, and pays for the tokens.
        meter: what has been paid for reading the prompts.
        thinking: how thoughts in front of the answers are told apart and kept short.

    Raises:
        ApiError: prompt and limit do not fit the context.
        InputError: the request is larger than this server lets one be.
    """
    require_few_parts(plan, state.settings.max_steering_changes)
    check_rank(plan, fields.choices, bool(fields.stream))
    require_place(state, plan, prompts, fields.choices, len(prompts))
    _may_wait(serving, fields, grammar)
    seed = fields.seed if fields.seed is not None else new_seed()
    requests = []
    samplings: dict[int, SamplingParams] = {}  # what all choices have in common is checked once
    defaults = sampling_defaults(serving.family, fields.model, plan.method, grammar is not None)
    salt = salt_of(state, fields.cache_salt, caller)
    for prompt in prompts:
        limit = _limit(state, serving, max(part.lanes for part in plan.plans), prompt, max_tokens, limit_field)
        if limit not in samplings:
            sampling = fields.sampling(limit, seed, serving.vocabulary, logprobs, defaults)
            check_search(plan, state.settings, fields.choices * len(prompts), sampling.temperature)
            judged = prompt_logprobs or fields.prompt_logprobs is not None
            ends = sampling.stop_token_ids | serving.tokens.named(sampling.stop)
            stops = (*sampling.stop, *stop)
            samplings[limit] = replace(sampling, prompt_logprobs=judged, stop=stops, stop_token_ids=ends)
        for choice in range(fields.choices):
            own = replace(samplings[limit], seed=choice_seed(seed, choice))
            request = GenerationRequest(uuid.uuid4().hex, prompt.ids, plan, own, prompt.views, grammar, salt=salt)
            requests.append(replace(request, thinking=thinking))
    longest = sum(len(request.prompt) + request.sampling.max_tokens for request in requests)
    most = state.settings.max_request_tokens
    if most is not None and longest > most:
        reason = f"prompts and answers may take {longest} tokens; this server allows {most} per request"
        raise InputError(limit_field, max_tokens, reason=reason)
    return Job(plan, tuple(prompts), fields.choices, seed, tuple(requests), caller, meter)


def salt_of(state: ServerState, own: str | None, caller: Caller) -> bytes:
    """What keeps the reusable state of a request apart: its key's, unless the operator shares it, and its own."""
    key = b"" if state.settings.share_prefixes else caller.salt
    return key if own is None else b"%d:%s%s" % (len(key), key, own.encode("utf-8", "surrogatepass"))


def _may_wait(serving: Serving, fields: SamplingFields, grammar: Grammar | None) -> None:
    """Raise InputError where ``min_tokens`` and what else is asked for leave no token that may come."""
    if not fields.min_tokens:
        return
    if grammar is not None:
        reason = "a form of the answer, or calls that it must make, say when it ends"
        raise InputError("min_tokens", fields.min_tokens, reason=reason)
    if len(serving.engine.eos | set(fields.stop_token_ids or ())) >= serving.vocabulary:
        raise InputError("min_tokens", fields.min_tokens, reason="every token ends the text here")


def require_few(settings: ServerSettings, choices: int, prompts: int) -> None:
    """Raise InputError for a request that asks for more answers than one may here."""
    if choices * prompts > settings.max_choices:
        name, value = ("n", choices) if choices > 1 else ("prompt", f"{prompts} prompts")
        reason = f"this makes {choices * prompts} answers; this server allows {settings.max_choices} per request"
        raise InputError(name, value, reason=reason)


def require_place(state: ServerState, plan: Plan, prompts: Sequence[Prompt], choices: int, in_all: int) -> None:
    """Raise InputError for a request whose sequences the queue could not hold together: they would be told in vain to
    come back. ``prompts``: those that have been read so far, of ``in_all``."""
    settings = state.settings
    count, tokens = in_all * choices, sum(map(len, prompts)) * choices * plan.lanes
    name, value = ("n", choices) if choices > 1 else ("prompt", f"{in_all} prompts")
    if count > settings.max_queue:
        raise InputError(name, value, reason=f"this makes {count} answers; at most {settings.max_queue} may wait here")
    if count > 1 and tokens > settings.max_queue_tokens:
        reason = f"this makes {tokens} prompt tokens to compute; at most {settings.max_queue_tokens} may wait here"
        raise InputError(name, value, reason=reason)


def _limit(
    state: ServerState, serving: Serving, lanes: int, shown: Prompt, max_tokens: int | None, limit_field: str
) -> int:
    context, prompt, asked = serving.engine.max_context, shown.longest, shown.question
    left = context - prompt - asked
    if max_tokens is None and left > 0:
        room = serving.engine.stats().blocks_total // lanes * BLOCK_SIZE - prompt  # several lanes may fill the pool
        return max(1, min(left, room, state.settings.default_max_tokens))
    if max_tokens is None or max_tokens > left:
        has = f"{prompt} tokens" + (f", the question of {shown.question_field} {asked}" if asked else "")
        asks = f"{limit_field} asks for {max_tokens or 1}, of which there is room for {max(0, left)}"
        overflow = Overflow(context, prompt + asked, max_tokens or 1)
        raise context_overflow(overflow, f"{shown.longest_field} has {has} and {asks}", limit_field)
    return max_tokens


class Outputs:
    """The outputs of a running job, in the order in which they come."""

    def __init__(
        self, state: ServerState, serving: Serving, job: Job, record: JobRecord, meter: Meter, live: LiveAnswer
    ) -> None:
        self._state = state
        self._serving = serving
        self._record = record
        self._queue: asyncio.Queue[tuple[int, StepOutput | Exception]] = asyncio.Queue()
        self._unfinished = len(job.requests)
        self._failure: Exception | None = None
        self._meter = meter
        self._live = live
        form = job.requests[0].grammar
        # Codes of failures that the request itself is the reason of, and the field that is to blame.
        self._blamed = {"grammar_too_complex": form.field if form else None, "scores_not_finite": "steering"}

    @property
    def finished(self) -> bool:
        """Whether every sequence has ended."""
        return self._unfinished == 0

    async def next(self, timeout: float) -> list[tuple[int, StepOutput]]:
        """All outputs that are there, at least one; empty after ``timeout`` seconds without any.

        Raises:
            ApiError: a sequence was refused or failed, or the engine stopped.
        """
        if self._failure is not None:
            raise self._failure
        until = time.monotonic() + timeout
        while self._queue.empty():
            wait = min(until - time.monotonic(), _CHECK_SECONDS)
            if wait <= 0:
                return []
            try:
                # Not wait_for: before Python 3.12 it loses a cancellation that comes together with an output.
                async with asyncio.timeout(wait):
                    item = await self._queue.get()
                return self._take(item)
            except TimeoutError:
                if not self._serving.engine.alive:
                    raise unavailable("the engine has stopped", "engine_stopped") from None
        return self._take(self._queue.get_nowait())

    def _take(self, item: tuple[int, StepOutput | Exception]) -> list[tuple[int, StepOutput]]:
        """``item`` and all that is queued behind it; a failure waits until what came before it was given out."""
        taken: list[tuple[int, StepOutput]] = []
        while True:
            index, output = item
            self._failure = self._explain(output)
            if self._failure is not None:
                if not taken:
                    raise self._failure
                return taken
            assert isinstance(output, StepOutput), "exceptions are explained"
            if output.finish_reason is not None:
                self._unfinished -= 1
            taken.append((index, output))
            if self._queue.empty():
                return taken
            item = self._queue.get_nowait()

    def _explain(self, output: StepOutput | Exception) -> Exception | None:
        """What a failed output means to the client; None for any other output."""
        if isinstance(output, StepOutput):
            code = code_of(output.error)
            if code in self._blamed:
                return ApiError(400, str(output.error), param=self._blamed[code], code=code)
            if code == "grammars_unavailable":
                return unavailable(str(output.error), code)
            if output.finish_reason == "error":
                self._log_failure(output.error or "no reason is known")
                return ApiError(500, "the engine failed on this request; its log says why", code="engine_error")
            return unavailable("the server is shutting down", "draining") if output.finish_reason == "abort" else None
        if isinstance(output, QueueFull):
            self._state.metrics.rejections.labels(reason="queue_full").inc()
            return from_queue_full(output)
        # The engine refuses work with a RuntimeError once it is shutting down.
        if isinstance(output, RuntimeError) and self._state.unready() is not None:
            return unavailable("the server is shutting down", "draining")
        return output

    def _log_failure(self, reason: str) -> None:
        """Say why an answer failed; what follows the first colon may quote the request."""
        logger.error("an answer failed: %s", reason if self._state.settings.log_prompts else reason.partition(":")[0])

    async def pump(self, index: int, request: GenerationRequest) -> None:
        """Feed one sequence's outputs in; cancelling the task that runs this cancels the sequence."""
        finished, cost = False, token_cost(request.plan)
        try:
            async for output in self._serving.engine.stream(request):
                self._record.saw(index, output)
                if output.finish_reason not in ("error", "abort"):
                    if output.began is not None:
                        cost = token_cost(output.began)
                        self._meter.generated(self._live.began(request, output))
                    self._meter.generated(cost_of(output, cost))
                finished = output.finish_reason is not None
                self._queue.put_nowait((index, output))
            if not finished:
                raise RuntimeError("a sequence ended without a finish reason")
        except Exception as error:
            finished = True
            self._queue.put_nowait((index, error))
        finally:
            if not finished:
                self._state.metrics.cancelled.inc()


@contextmanager
def _charged(state: ServerState, job: Job) -> Iterator[Meter]:
    with ExitStack() as stack:
        try:
            meter = stack.enter_context(job.caller.using(len(job.requests), job.prompt_cost, job.meter))
        except ApiError as error:
            raise state.counted(error) from None
        meter.computed = job.computed
        try:
            yield meter
        except ApiError as error:
            if error.status_code in (429, 503):
                meter.refuse()
            raise


@asynccontextmanager
async def running(state: ServerState, serving: Serving, job: Job) -> AsyncIterator[Outputs]:
    """Run ``job``; on leaving, whatever still runs is cancelled and its lanes are free. Raises ApiError for a caller
    who has to wait."""
    with _charged(state, job) as meter:
        record = JobRecord(state, serving, job.requests)
        live = LiveAnswer(serving, job.caller, job.requests, state.settings.max_steering_changes)
        outputs = Outputs(state, serving, job, record, meter, live)
        tasks: list[asyncio.Task[None]] = []
        state.active += 1
        state.live[job.id] = live
        try:
            for index, request in enumerate(job.requests):
                if tasks:
                    await asyncio.sleep(0)  # others come between any two of many choices
                tasks.append(asyncio.create_task(outputs.pump(index, request)))
            yield outputs
        finally:
            del state.live[job.id]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            state.active -= 1
            record.end()


async def collect(state: ServerState, serving: Serving, job: Job) -> list[Choice]:
    """Run ``job`` to its end. Raises ApiError, InputError."""
    choices = [Choice() for _ in job.requests]
    async with running(state, serving, job) as outputs:
        while not outputs.finished:
            for index, output in await outputs.next(state.settings.keep_alive_seconds):
                choices[index].outputs.append(output)
    return await voted(job.plan.rank, choices, job.choices)


async def batches(state: ServerState, serving: Serving, job: Job) -> AsyncGenerator[list[tuple[int, StepOutput]], None]:
    """Run ``job``, yielding outputs as they come and an empty list whenever a stream should say that it lives.

    The first list comes after at most a moment, so that a refusal can still become an HTTP status. Raises ApiError,
    InputError.
    """
    async with running(state, serving, job) as outputs:
        yield await outputs.next(_GRACE_SECONDS)
        while not outputs.finished:
            yield await outputs.next(state.settings.keep_alive_seconds)


def usage(job: Job, last: Sequence[StepOutput]) -> Usage:
    """OpenAI's ``usage`` from every sequence's last output: a prompt counts once, however many choices it has."""
    cached = sum(last[index * job.choices].cached_tokens for index in range(len(job.prompts)))
    return token_counts(job.prompt_tokens, cached, last, job.thinks)


def usage_so_far(job: Job, seen: Mapping[int, StepOutput]) -> Usage:
    """OpenAI's ``usage`` of an answer that still grows; ``seen``: the newest output of each sequence that has one."""
    firsts = [seen.get(index * job.choices) for index in range(len(job.prompts))]
    cached = sum(first.cached_tokens for first in firsts if first is not None)
    return token_counts(job.prompt_tokens, cached, list(seen.values()), job.thinks)
