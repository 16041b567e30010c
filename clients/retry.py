"""When to ask again, and how long to wait before."""

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

# Overload and transitions, where the server did no work. A 500 is not among them: it would fail again.
RETRIED_STATUSES = frozenset({429, 502, 503, 504})


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with jitter, which the server's ``Retry-After`` overrides.

    Attributes:
        retries: how often a request is repeated at most.
        first, longest: bounds of the wait that backoff itself asks for, in seconds.
        patience: a ``Retry-After`` beyond this many seconds is reported rather than waited for.
    """

    retries: int = 2
    first: float = 0.5
    longest: float = 8.0
    patience: float = 60.0

    def wait(self, attempt: int, retry_after: float | None = None) -> float | None:
        """Seconds to wait after the failure of ``attempt`` (0 is the first one); None: give up."""
        if attempt >= self.retries or (retry_after is not None and retry_after > self.patience):
            return None
        if retry_after is not None:
            # Never earlier than asked, and not everyone at the same moment.
            return retry_after + random.uniform(0.0, self.first)
        return random.uniform(0.5, 1.0) * min(self.longest, self.first * 2.0**attempt)


def is_worth_repeating(error: httpx.TransportError) -> bool:
    """Whether the request may be sent again: not if the server may still be working on it."""
    return not isinstance(error, (httpx.ReadTimeout, httpx.WriteTimeout, httpx.UnsupportedProtocol))


def retry_after_seconds(response: httpx.Response) -> float | None:
    """The response's ``Retry-After``, in seconds from now; None if there is none that can be read."""
    value = response.headers.get("retry-after", "").strip()
    if value.isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
