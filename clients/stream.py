"""Answers that come token by token. The connection is given back at the end, at an error and at a break."""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from ladle.clients.errors import ConnectionError, ResponseError, UsageError, error_from_event, error_from_transport
from ladle.clients.event_decoder import EventDecoder
from ladle.clients.payload import change_body
from ladle.clients.responses import Generation, SteeringChange, StreamToken, Token, parse

_DONE = "[DONE]"
Post = Callable[[str, dict[str, Any]], Any]
AsyncPost = Callable[[str, dict[str, Any]], Awaitable[Any]]
_P = TypeVar("_P", Post, AsyncPost)


class _Transcript:
    """What a stream has said so far. Turns the data of events into tokens and remembers what the answer is made of."""

    def __init__(self, response: httpx.Response, tokens_listed: bool) -> None:
        self.url = str(response.request.url)
        self.request_id: str | None = response.headers.get("x-request-id")
        self.id: str | None = response.headers.get("x-generation-id")
        self.tokens_listed = tokens_listed
        self.complete = False
        self.texts: dict[int, list[str]] = {}
        self.tokens: dict[int, list[Token]] = {}
        self._summary: dict[str, Any] | None = None
        self._decoder = EventDecoder()

    def read(self, chunk: bytes) -> Iterator[StreamToken]:
        for data in self._decoder.feed(chunk):
            if data == _DONE:
                self.complete = True
                return  # the rest is read all the same, so that the connection can be used again
            event = self._parse(data)
            if "error" in event:
                raise error_from_event(event["error"], self.request_id)
            if "choices" in event:
                self._summary = event
                continue
            token = parse(StreamToken, event)
            self.texts.setdefault(token.index, []).append(token.text)
            self.tokens.setdefault(token.index, []).append(token.token)
            yield token

    def end(self) -> None:
        """Check that the answer is complete, when the body has ended."""
        if not self.complete:
            raise ConnectionError(f"{self.url} ended the stream before the answer was complete")

    def generation(self) -> Generation:
        """The whole answer, as if it had not been streamed."""
        if not self.complete:
            raise UsageError("the stream has not been read to its end")
        if self._summary is None:
            raise ResponseError("unexpected answer from the server: the stream had no closing summary")
        choices = [
            {"text": "".join(self.texts.get(choice.get("index", 0), []))}
            | self._thought(choice.get("index", 0))
            | choice  # which says its text where the tokens wrote calls besides
            | ({"tokens": self.tokens.get(choice.get("index", 0), [])} if self.tokens_listed else {})
            for choice in self._summary["choices"]
        ]
        return parse(Generation, self._summary | {"choices": choices})

    def _thought(self, index: int) -> dict[str, str]:
        said = self.tokens.get(index, [])
        parts = [token.reasoning_content for token in said if token.reasoning_content is not None]
        return {"reasoning_content": "".join(parts)} if parts else {}

    @staticmethod
    def _parse(data: str) -> dict[str, Any]:
        try:
            event = json.loads(data)
        except ValueError as error:
            raise ResponseError(f"unexpected event from the server: {data[:200]!r}") from error
        if not isinstance(event, dict):
            raise ResponseError(f"unexpected event from the server: {data[:200]!r}")
        return event


class _Progress:
    """What both kinds of stream tell while they run."""

    _transcript: _Transcript

    @property
    def request_id(self) -> str | None:
        """Names the request in the server's log."""
        return self._transcript.request_id

    @property
    def id(self) -> str | None:
        """The id by which the server knows the answer while it is written."""
        return self._transcript.id

    @property
    def text(self) -> str:
        """The text of choice 0 so far."""
        return "".join(self._transcript.texts.get(0, []))

    @staticmethod
    def _opened(post: _P | None) -> _P:
        """How the client sends that opened the stream."""
        if post is None:
            raise UsageError("steer: only for streams that a client has opened")
        return post

    def _path(self) -> str:
        if self._transcript.id is None:
            raise UsageError("steer: the server has not said by which id the answer can be steered")
        return f"/v1/generate/{self._transcript.id}/steering"


class Stream(_Progress):
    """Tokens as they are generated: an iterator, and a context manager that closes the connection.

    Leaving early ends the generation on the server:

    Examples:
        >>> from ladle.clients import Client
        >>> with Client() as ladle, ladle.generate("Once", stream=True) as stream:
        ...     print("Once", end="")
        ...     for token in stream:
        ...         print(token.text, end="")
        ...         if "." in token.text:
        ...             break
        Once upon a time.

    After the last token, ``result()`` is the whole answer.
    """

    def __init__(self, response: httpx.Response, tokens_listed: bool = False, post: Post | None = None) -> None:
        """``post``: sends a body to a path of the server and gives its answer."""
        self._response = response
        self._post = post
        self._transcript = _Transcript(response, tokens_listed)
        self._tokens = self._read()

    def result(self) -> Generation:
        """Read what is left and return the whole answer, with usage and steering."""
        for _ in self:
            pass
        return self._transcript.generation()

    def steer(
        self,
        *,
        preference: Mapping[str, float] | None = None,
        target: Mapping[str, float] | None = None,
        method: str | None = None,
        strength: float | Mapping[str, float] | None = None,
        steering: Mapping[str, Any] | None = None,
    ) -> SteeringChange:
        """Steer what has not been written yet otherwise; what is not named stays as it is.

        Examples:
            >>> from ladle.clients import Client
            >>> with Client() as ladle, ladle.generate("Once", preference={"simple": 1}, stream=True) as stream:
            ...     for count, token in enumerate(stream):
            ...         if count == 1:
            ...             change = stream.steer(preference={"positive": 1})
            >>> change.steering.preference
            {'positive': 1.0}

        Raises:
            UsageError: the stream is no client's, or a key is given twice.
            APIError: the server refuses the change, and the answer goes on as it was; NotFoundError once it has ended.
        """
        body = change_body(preference, target, method, strength, steering)
        return parse(SteeringChange, self._opened(self._post)(self._path(), body))

    def close(self) -> None:
        """End the stream; the server stops generating. May be called at any time, and more than once."""
        self._tokens.close()
        self._response.close()

    def _read(self) -> Generator[StreamToken, None, None]:
        try:
            for chunk in self._response.iter_bytes():
                yield from self._transcript.read(chunk)
            self._transcript.end()
        except httpx.TransportError as error:
            raise error_from_transport(error, self._transcript.url) from error
        finally:
            self._response.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamToken:
        return next(self._tokens)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # A loop left by `break` without a `with`: the server should not go on for nobody.
        self._response.close()


class AsyncStream(_Progress):
    """Tokens as they are generated: an asynchronous iterator, and a context manager that closes the connection.

    Examples:
        >>> import asyncio
        >>> from ladle.clients import AsyncClient
        >>> async def main():
        ...     async with AsyncClient() as ladle, await ladle.generate("Once", stream=True) as stream:
        ...         print("Once", end="")
        ...         async for token in stream:
        ...             print(token.text, end="")
        >>> asyncio.run(main())
        Once upon a time.

    Use ``async with`` (or ``aclose``) where the loop may be left early: nothing can be awaited when an object is
    dropped.
    """

    def __init__(self, response: httpx.Response, tokens_listed: bool = False, post: AsyncPost | None = None) -> None:
        """``post``: sends a body to a path of the server and gives its answer."""
        self._response = response
        self._post = post
        self._transcript = _Transcript(response, tokens_listed)
        self._tokens = self._read()

    async def result(self) -> Generation:
        """Read what is left and return the whole answer, with usage and steering."""
        async for _ in self:
            pass
        return self._transcript.generation()

    async def steer(
        self,
        *,
        preference: Mapping[str, float] | None = None,
        target: Mapping[str, float] | None = None,
        method: str | None = None,
        strength: float | Mapping[str, float] | None = None,
        steering: Mapping[str, Any] | None = None,
    ) -> SteeringChange:
        """Steer what has not been written yet otherwise; what is not named stays as it is.

        Raises:
            UsageError: the stream is no client's, or a key is given twice.
            APIError: the server refuses the change, and the answer goes on as it was; NotFoundError once it has ended.
        """
        body = change_body(preference, target, method, strength, steering)
        return parse(SteeringChange, await self._opened(self._post)(self._path(), body))

    async def aclose(self) -> None:
        """End the stream; the server stops generating. May be called at any time, and more than once."""
        await self._tokens.aclose()
        await self._response.aclose()

    async def _read(self) -> AsyncGenerator[StreamToken, None]:
        try:
            async for chunk in self._response.aiter_bytes():
                for token in self._transcript.read(chunk):
                    yield token
            self._transcript.end()
        except httpx.TransportError as error:
            raise error_from_transport(error, self._transcript.url) from error
        finally:
            await self._response.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamToken:
        return await anext(self._tokens)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
