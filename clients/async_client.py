"""The asynchronous client: ``client.py``, method by method, for asyncio."""

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, Unpack, overload
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
from ladle.clients.payload import (
    Message,
    Options,
    as_messages,
    coefficients_body,
    generation_body,
    lists_tokens,
    score_body,
)
from ladle.clients.responses import CoefficientsReport, Family, Generation, Model, Scores, parse, parse_list
from ladle.clients.retry import RETRIED_STATUSES, RetryPolicy, is_worth_repeating, retry_after_seconds
from ladle.clients.settings import Connection
from ladle.clients.stream import AsyncStream


class AsyncClient:
    """A client of one Ladle server. Close it, or use it as a context manager.

        >>> import asyncio
        >>> from ladle.clients import AsyncClient
        >>> async def main():
        ...     async with AsyncClient("http://localhost:8000") as ladle:
        ...         return await ladle.chat("Tell me about rain.", preference={"positive": 0.8, "concise": 0.2})
        >>> asyncio.run(main()).text
        'Rain is lovely.'

    Args:
        url: where the server is; else ``LADLE_URL``, else ``http://localhost:8000``.
        api_key: sent as a bearer token; else ``LADLE_API_KEY``, else none.
        timeout: seconds of silence to accept, or an ``httpx.Timeout``; 600, and 10 to connect, if None.
        max_retries: how often a request is repeated that met an overloaded or absent server. One that has begun to
            stream never is.
        transport: how requests travel, for tests: an ``httpx.MockTransport``, or an
            ``httpx.ASGITransport`` around the server's own application.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float | httpx.Timeout | None = None,
        max_retries: int = 2,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        connection = Connection.resolve(url, api_key, timeout)
        self.url = connection.url
        self._retry = RetryPolicy(max_retries)
        self._http = httpx.AsyncClient(headers=connection.headers, timeout=connection.timeout, transport=transport)
        self._family: str | None = None

    @overload
    async def chat(
        self, prompt: str | Sequence[Message], *, stream: Literal[False] = False, **options: Unpack[Options]
    ) -> Generation: ...
    @overload
    async def chat(
        self, prompt: str | Sequence[Message], *, stream: Literal[True], **options: Unpack[Options]
    ) -> AsyncStream: ...
    async def chat(
        self, prompt: str | Sequence[Message], *, stream: bool = False, **options: Unpack[Options]
    ) -> Generation | AsyncStream:
        """Answer a conversation, in the model's chat format.

        >>> import asyncio
        >>> from ladle.clients import AsyncClient
        >>> async def main():
        ...     async with AsyncClient() as ladle:
        ...         history = [{"role": "user", "content": "Tell me about rain."}]
        ...         reply = await ladle.chat(history, preference={"positive": 1}, method="bone_soup", seed=7)
        ...         history += [reply.message, {"role": "user", "content": "And about snow?"}]
        ...         print(reply.text, reply.steering.preference)
        >>> asyncio.run(main())
        Rain is lovely. {'positive': 1.0}

        Args:
            prompt: what the user says, or the messages so far.
            stream: give a ``AsyncStream`` of tokens instead of the complete answer.
            **options: see ``Options``: steering, model and sampling.

        Raises:
            UsageError: unknown options, or no ``model`` where the server has several families.
            APIError: the server's refusal; see ``ladle.clients.errors`` for its kinds.
            ConnectionError: the server cannot be reached, or it went away.
        """
        return await self._generate({"messages": as_messages(prompt)}, stream, options)

    @overload
    async def generate(
        self, prompt: str, *, stream: Literal[False] = False, **options: Unpack[Options]
    ) -> Generation: ...
    @overload
    async def generate(self, prompt: str, *, stream: Literal[True], **options: Unpack[Options]) -> AsyncStream: ...
    async def generate(
        self, prompt: str, *, stream: bool = False, **options: Unpack[Options]
    ) -> Generation | AsyncStream:
        """Continue a text as it stands, without a chat format.

        >>> import asyncio
        >>> from ladle.clients import AsyncClient
        >>> async def main():
        ...     async with AsyncClient() as ladle:
        ...         stream = await ladle.generate("Once", preference={"simple": 1}, stream=True, trace=True)
        ...         async with stream:
        ...             async for token in stream:
        ...                 print(repr(token.text), token.token.shift)
        >>> asyncio.run(main())
        ' upon' 0.25
        ' a' 0.5
        ' time' 0.0
        '.' 0.125

        Takes what ``chat`` takes and raises what it raises.
        """
        return await self._generate({"prompt": prompt}, stream, options)

    async def score(
        self,
        prompt: str | Sequence[Message],
        texts: Sequence[str | Sequence[int]],
        *,
        by: str,
        per: str | None = None,
        end: bool | None = None,
        preference: Mapping[str, float] | None = None,
        method: str | None = None,
        model: str | None = None,
        steering: Mapping[str, Any] | None = None,
    ) -> Scores:
        """How good given texts are as answers to a prompt: what ``rank`` says of answers that the server makes.

        >>> import asyncio
        >>> from ladle.clients import AsyncClient
        >>> async def main():
        ...     async with AsyncClient() as ladle:
        ...         found = await ladle.score("Rain is", [" lovely.", " wet."], by="likelihood", method="bone_soup")
        ...         return [text.score for text in found.scores]
        >>> asyncio.run(main())
        [-1.5, -2.5]

        Args:
            prompt: a text that is continued, or the messages that are answered.
            texts: each a string, or token ids. It is tokenised by itself.
            by: ``likelihood`` under the method and its options, or the family's ``implicit`` or ``explicit`` values
                weighed by the preference.
            per: ``token`` to divide by the tokens of a text, default ``answer``.
            end: count the token that ends an answer as the last one of every text.
            preference, method, model: as for ``chat``.
            steering: further options of the method.

        Raises what ``chat`` raises.
        """
        given = {"per": per, "end": end, "preference": preference, "method": method}
        body = score_body(await self._model(model), prompt, texts, by, steering, **given)
        return parse(Scores, await self._json("POST", "/v1/score", body))

    async def coefficients(
        self,
        preference: Mapping[str, float] | None = None,
        *,
        method: str | None = None,
        model: str | None = None,
        steering: Mapping[str, Any] | None = None,
    ) -> CoefficientsReport:
        """The member weights a preference becomes, without generating anything.

        >>> import asyncio
        >>> from ladle.clients import AsyncClient
        >>> async def main():
        ...     async with AsyncClient() as ladle:
        ...         return (await ladle.coefficients({"positive": 1}, method="bone_soup")).coefficients
        >>> asyncio.run(main())
        {'bone-positive': 1.75, 'bone-concise': -0.75}

        Args:
            preference, method, model: as for ``chat``.
            steering: further options that change the sources and their weights, such as ``strength``.

        Raises what ``chat`` raises.
        """
        body = coefficients_body(await self._model(model), preference, method, steering)
        return parse(CoefficientsReport, await self._json("POST", "/v1/coefficients", body))

    async def families(self) -> list[Family]:
        """The families this server has.

        >>> import asyncio
        >>> from ladle.clients import AsyncClient
        >>> async def main():
        ...     async with AsyncClient() as ladle:
        ...         return [family.name for family in await ladle.families()]
        >>> asyncio.run(main())
        ['demo']
        """
        return parse_list(Family, await self._json("GET", "/v1/families"))

    async def family(self, name: str) -> Family:
        """One family: its objectives, members, and which methods it can serve and why not.

        >>> import asyncio
        >>> from ladle.clients import AsyncClient
        >>> async def main():
        ...     async with AsyncClient() as ladle:
        ...         return (await ladle.family("demo")).methods["mage"].reason
        >>> asyncio.run(main())
        'the family has no value models'

        Raises:
            NotFoundError: there is none of that name.
        """
        return parse(Family, await self._json("GET", f"/v1/families/{quote(name, safe='')}"))

    async def models(self) -> list[Model]:
        """What may be given as ``model``: families and presets.

        >>> import asyncio
        >>> from ladle.clients import AsyncClient
        >>> async def main():
        ...     async with AsyncClient() as ladle:
        ...         return [model.id for model in await ladle.models()]
        >>> asyncio.run(main())
        ['demo', 'cheerful']
        """
        return parse_list(Model, await self._json("GET", "/v1/models"))

    async def health(self) -> bool:
        """Whether the server is alive; False if it cannot be reached.

        >>> import asyncio
        >>> from ladle.clients import AsyncClient
        >>> async def main():
        ...     async with AsyncClient() as ladle:
        ...         return await ladle.health()
        >>> asyncio.run(main())
        True
        """
        return await self._answers("/health")

    async def ready(self) -> bool:
        """Whether the server takes requests: not while it loads, drains, or cannot be reached.

        >>> import asyncio
        >>> from ladle.clients import AsyncClient
        >>> async def main():
        ...     async with AsyncClient() as ladle:
        ...         return await ladle.ready()
        >>> asyncio.run(main())
        True
        """
        return await self._answers("/ready")

    async def aclose(self) -> None:
        """Give back all connections. Streams still open end."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _generate(self, prompt: Mapping[str, Any], stream: bool, options: Options) -> Generation | AsyncStream:
        body = generation_body(await self._model(options.get("model")), prompt, options, stream)
        if not stream:
            return parse(Generation, await self._json("POST", "/v1/generate", body))
        response = await self._send("POST", "/v1/generate", body, stream=True)
        return AsyncStream(response, lists_tokens(body), lambda path, change: self._json("POST", path, change))

    async def _model(self, model: str | None) -> str:
        """The model asked for, or the one family served; that is asked once."""
        if model is not None:
            return model
        if self._family is None:
            names = [family.name for family in await self.families()]
            if len(names) != 1:
                raise UsageError(f"model: the server has {len(names)} families; choose one of: {', '.join(names)}")
            self._family = names[0]
        return self._family

    async def _json(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        response = await self._send(method, path, body)
        try:
            return response.json()
        except ValueError as error:
            raise ResponseError(f"unexpected answer from {response.request.url}: not JSON") from error

    async def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, stream: bool = False
    ) -> httpx.Response:
        """A successful response, after as many attempts as the policy allows; its body unread if ``stream``."""
        attempt = 0
        while True:
            request = self._http.build_request(method, self.url + path, json=body)
            failure: APIError | ConnectionError
            try:
                response = await self._http.send(request, stream=stream)
                if response.is_success:
                    return response
                await response.aread()
                failure = error_from_status(response, retry_after := retry_after_seconds(response))
                wait = self._retry.wait(attempt, retry_after) if response.status_code in RETRIED_STATUSES else None
            except httpx.TransportError as error:
                failure = error_from_transport(error, self.url)
                wait = self._retry.wait(attempt) if is_worth_repeating(error) else None
            if wait is None:
                raise failure
            await asyncio.sleep(wait)
            attempt += 1

    async def _answers(self, path: str) -> bool:
        try:
            return (await self._http.get(self.url + path)).is_success
        except httpx.TransportError:
            return False
