"""What both clients do between sending and waiting: each call of the API, and when a request is sent again.

A call is a generator, so that it stands here once. It yields what it needs, an ``Exchange`` or a number of seconds to
wait, and is sent the response, or has the transport's error thrown into it; it returns the answer. ``client.py`` and
``async_client.py`` run it, each in its own way of waiting.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from ladle.clients.errors import (
    APIError,
    ConnectionError,
    ResponseError,
    UsageError,
    error_from_status,
    error_from_transport,
)
from ladle.clients.family_responses import Family, Model
from ladle.clients.payload import Message, Options, coefficients_body, generation_body, score_body
from ladle.clients.responses import CoefficientsReport, Generation, Scores, parse, parse_list
from ladle.clients.retry import RETRIED_STATUSES, RetryPolicy, is_worth_repeating, retry_after_seconds


@dataclass(frozen=True)
class Exchange:
    """One request to send; the body of its response is read, but for a successful one with ``stream``.

    Attributes:
        method: of HTTP.
        url: whole.
        body: sent as JSON; None for none.
    """

    method: str
    url: str
    body: Mapping[str, Any] | None = None
    stream: bool = False


T = TypeVar("T")
Step = Exchange | float
Call = Generator[Step, httpx.Response | None, T]


class Calls:
    """The calls to the server at ``url``. What is asked for only once is remembered: the one family that it serves."""

    def __init__(self, url: str, retry: RetryPolicy) -> None:
        self.url = url
        self._retry = retry
        self._family: str | None = None

    def generation(self, prompt: Mapping[str, Any], options: Options) -> Call[Generation]:
        """An answer as a whole; ``prompt`` is the body's ``prompt`` or ``messages`` field."""
        body = generation_body((yield from self._model(options.get("model"))), prompt, options, False)
        return parse(Generation, (yield from self.json("POST", "/v1/generate", body)))

    def stream(self, prompt: Mapping[str, Any], options: Options) -> Call[tuple[httpx.Response, dict[str, Any]]]:
        """The response whose body is the stream of an answer, and the body that asked for it."""
        body = generation_body((yield from self._model(options.get("model"))), prompt, options, True)
        return (yield from self._send("POST", "/v1/generate", body, stream=True)), body

    def score(
        self,
        model: str | None,
        prompt: str | Sequence[Message],
        texts: Sequence[str | Sequence[int]],
        by: str | Mapping[str, str],
        steering: Mapping[str, Any] | None,
        **options: Any,
    ) -> Call[Scores]:
        """Scores of given texts; see ``score_body``."""
        body = score_body((yield from self._model(model)), prompt, texts, by, steering, **options)
        return parse(Scores, (yield from self.json("POST", "/v1/score", body)))

    def coefficients(
        self,
        model: str | None,
        preference: Mapping[str, float] | None,
        method: str | None,
        steering: Mapping[str, Any] | None,
    ) -> Call[CoefficientsReport]:
        """What a preference becomes; see ``coefficients_body``."""
        body = coefficients_body((yield from self._model(model)), preference, method, steering)
        return parse(CoefficientsReport, (yield from self.json("POST", "/v1/coefficients", body)))

    def families(self) -> Call[list[Family]]:
        """All families."""
        return parse_list(Family, (yield from self.json("GET", "/v1/families")))

    def family(self, name: str) -> Call[Family]:
        """The family ``name``."""
        return parse(Family, (yield from self.json("GET", f"/v1/families/{quote(name, safe='')}")))

    def models(self) -> Call[list[Model]]:
        """All that may stand in ``model``."""
        return parse_list(Model, (yield from self.json("GET", "/v1/models")))

    def answers(self, path: str) -> Call[bool]:
        """Whether the server answers ``path`` with success, asked once."""
        try:
            response = yield Exchange("GET", self.url + path)
        except httpx.TransportError:
            return False
        assert response is not None, "an exchange has a response"
        return response.is_success

    def json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Call[Any]:
        """The document that ``path`` answers with. Raises LadleError."""
        response = yield from self._send(method, path, body)
        try:
            return response.json()
        except ValueError as error:
            raise ResponseError(f"unexpected answer from {response.request.url}: not JSON") from error

    def _model(self, model: str | None) -> Call[str]:
        """The model asked for, or the one family served; that is asked once."""
        if model is not None:
            return model
        if self._family is None:
            names = [family.name for family in (yield from self.families())]
            if len(names) != 1:
                raise UsageError(f"model: the server has {len(names)} families; choose one of: {', '.join(names)}")
            self._family = names[0]
        return self._family

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, stream: bool = False
    ) -> Call[httpx.Response]:
        """A successful response, after as many attempts as the policy allows; its body unread if ``stream``."""
        attempt = 0
        while True:
            failure: APIError | ConnectionError
            try:
                response = yield Exchange(method, self.url + path, body, stream)
                assert response is not None, "an exchange has a response"
                if response.is_success:
                    return response
                failure = error_from_status(response, retry_after := retry_after_seconds(response))
                wait = self._retry.wait(attempt, retry_after) if response.status_code in RETRIED_STATUSES else None
            except httpx.TransportError as error:
                failure = error_from_transport(error, self.url)
                wait = self._retry.wait(attempt) if is_worth_repeating(error) else None
            if wait is None:
                raise failure
            yield wait
            attempt += 1
