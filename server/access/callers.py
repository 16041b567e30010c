"""Who sends requests: what each may do, what each has running, and how many tokens each has left this minute."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ladle.merging.exceptions import InputError
from ladle.server.api_errors import ApiError

GENERATE, ADMIN = "generate", "admin"
SCOPES = (GENERATE, ADMIN)
_SHARE = 0.2  # of the newest duration in what a request is said to take
_LONGEST_S = 600


@dataclass(frozen=True)
class Limits:
    """What a caller may ask for at a time; None is no limit.

    Attributes:
        concurrent: answers that may be made at once (a request with n = 4 makes four).
        tokens_per_minute: of prompts and answers together.
    """

    concurrent: int | None = None
    tokens_per_minute: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and value < 1:
                raise InputError(name, value, "a number >= 1")

    def otherwise(self, default: Limits) -> Limits:
        """These limits, and those of ``default`` where there are none."""
        return Limits(self.concurrent or default.concurrent, self.tokens_per_minute or default.tokens_per_minute)


NO_LIMITS = Limits()


class Meter:
    """What one request of a caller has used.

    Its texts are paid for as they are read, its prompts as a whole when it begins, and its answers as they come. What
    was paid for its prompts and not computed is given back at its end: where the server refused it that is all of it,
    and where its client left before the first token, whatever exceeds the work that was done.
    """

    def __init__(self, caller: Caller) -> None:
        self.computed: Callable[[], int] = lambda: 0
        """How many tokens the engine has computed so far, those of every source counted."""
        self._caller = caller
        self._read = 0
        self._paid = 0
        self._answered = False
        self._refused = False

    @property
    def paid(self) -> int:
        """Tokens that are paid for, but for those of answers."""
        return self._paid

    def read(self, tokens: int) -> None:
        """A text was turned into ``tokens``."""
        self._read += tokens
        self._pay(self._paid + tokens)

    def begin(self, prompt_tokens: int) -> None:
        """The engine is to compute ``prompt_tokens``; what was read of them is paid for already."""
        self._pay(max(self._paid, prompt_tokens))

    def generated(self, tokens: int) -> None:
        """``tokens`` came out; from the first one on the prompt is paid for."""
        self._answered = True
        self._caller.spend(tokens)

    def refuse(self) -> None:
        """The server had no room for the request."""
        self._refused = True

    def close(self) -> None:
        """The request is over."""
        if not self._answered:
            self._pay(0 if self._refused else max(self._read, self.computed()))

    def _pay(self, tokens: int) -> None:
        self._caller.spend(tokens - self._paid)
        self._paid = tokens


class Caller:
    """The holder of one key, or everybody where no keys are asked for. For the event loop's thread.

    The tokens of a minute are a bucket that fills all the time and holds a minute's worth. A request may start while
    there is anything in it; it pays for its prompt at once and for its answer token by token, so that long answers need
    not be foreseen. Who leaves early has paid for what was computed. What goes beyond is owed, and nothing starts until
    it has been filled up again: over time a caller gets its tokens per minute and no more.
    """

    def __init__(
        self,
        name: str,
        scopes: frozenset[str],
        limits: Limits = NO_LIMITS,
        clock: Callable[[], float] = time.monotonic,
        salt: bytes = b"",
    ) -> None:
        self.name = name
        self.scopes = scopes
        self.running = 0
        self.salt = salt
        """Keeps what is computed for it apart from what is computed for others; empty for who shares."""
        self._clock = clock
        self._limits = limits
        self._tokens = float(limits.tokens_per_minute or 0)
        self._filled = clock()
        self._typical = 1.0  # seconds that a request takes

    @property
    def limits(self) -> Limits:
        return self._limits

    def change(self, name: str, scopes: frozenset[str], limits: Limits) -> None:
        """What the key file says now; what was used stays used."""
        self._fill()
        before, now = self._limits.tokens_per_minute, limits.tokens_per_minute
        self.name, self.scopes, self._limits = name, scopes, limits
        if now is not None:
            self._tokens = min(self._tokens, now) if before is not None else float(now)

    def check(self) -> None:
        """Raise ApiError (429) if no request may start now; before anything is computed for one."""
        self._require_room(1)
        self._require_tokens()

    @contextmanager
    def using(self, answers: int, prompt_tokens: int, meter: Meter | None = None) -> Iterator[Meter]:
        """Make ``answers`` answers to prompts of ``prompt_tokens``; ``meter``: what the request has paid already.

        Raises:
            ApiError: 429 when that is too much now, 400 when it always is.
        """
        most = self._limits.concurrent
        if most is not None and answers > most:
            raise ApiError(
                400,
                f"n: {answers} answers in one request are not allowed; allowed: at most {most} at once with this key",
                param="n",
                code="invalid_value",
            )
        meter = meter or Meter(self)
        self._require_room(answers)
        self._require_tokens(meter.paid)
        self.running += answers
        meter.begin(prompt_tokens)
        start = self._clock()
        try:
            yield meter
        finally:
            meter.close()
            self.running -= answers
            self._typical += _SHARE * (self._clock() - start - self._typical)

    def spend(self, tokens: int) -> None:
        """Take ``tokens`` out of the bucket."""
        if self._limits.tokens_per_minute is not None:
            self._fill()
            self._tokens -= tokens

    def _require_room(self, answers: int) -> None:
        most = self._limits.concurrent
        if most is not None and self.running + answers > most:
            message = f"{self.running} answers are being made for this key; allowed: {most} at once"
            raise _later(message, "too_many_at_once", self._typical)

    def _require_tokens(self, paid: int = 0) -> None:
        """``paid``: what the request that wants to begin has itself taken out."""
        rate = self._limits.tokens_per_minute
        if rate is None:
            return
        self._fill()
        if self._tokens + paid <= 0:
            wait = (1 - self._tokens) * 60 / rate
            raise _later(f"this key has used its {rate} tokens a minute", "tokens_per_minute", wait)

    def _fill(self) -> None:
        now = self._clock()
        rate = self._limits.tokens_per_minute
        if rate is not None:
            self._tokens = min(rate, self._tokens + (now - self._filled) * rate / 60)
        self._filled = now


def _later(message: str, code: str, seconds: float) -> ApiError:
    wait = min(_LONGEST_S, max(1, math.ceil(seconds)))
    return ApiError(429, f"{message}; try again in {wait} s", code=code, headers={"Retry-After": str(wait)})


ANYONE = Caller("anyone", frozenset({GENERATE}))
"""Whoever calls a server that asks for no key. That nobody is known is no reason to let everybody administer."""
