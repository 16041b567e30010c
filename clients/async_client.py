"""The asynchronous client: ``client.py``, method by method, for asyncio. What is not waiting stands in ``calls.py``."""

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, Unpack, overload

import httpx

from ladle.clients.calls import Call, Calls, Exchange
from ladle.clients.connection import Connection
from ladle.clients.family_responses import Family, Model
from ladle.clients.payload import Message, Options, as_messages, lists_tokens
from ladle.clients.responses import CoefficientsReport, Generation, Scores
from ladle.clients.retry import RetryPolicy
from ladle.clients.stream import AsyncStream

_T = TypeVar("_T")


class AsyncClient:
    """A client of one Ladle server. Close it, or use it as a context manager.

    Examples:
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
        self._calls = Calls(connection.url, RetryPolicy(max_retries))
        self._http = httpx.AsyncClient(headers=connection.headers, timeout=connection.timeout, transport=transport)

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

        Examples:
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

        Takes what ``Client.chat`` takes and raises what it raises; with ``stream`` it gives an ``AsyncStream``.
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

        Examples:
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
        by: str | Mapping[str, str],
        per: str | None = None,
        end: bool | None = None,
        preference: Mapping[str, float] | None = None,
        method: str | None = None,
        model: str | None = None,
        steering: Mapping[str, Any] | None = None,
    ) -> Scores:
        """How good given texts are as answers to a prompt: what ``rank`` says of answers that the server makes.

        Examples:
            >>> import asyncio
            >>> from ladle.clients import AsyncClient
            >>> async def main():
            ...     async with AsyncClient() as ladle:
            ...         reply = await ladle.score("Rain is", [" lovely.", " wet."], by="likelihood", method="bone_soup")
            ...         return [text.score for text in reply.scores]
            >>> asyncio.run(main())
            [-1.5, -2.5]

        Takes what ``Client.score`` takes and raises what it raises.
        """
        given = {"per": per, "end": end, "preference": preference, "method": method}
        return await self._run(self._calls.score(model, prompt, texts, by, steering, **given))

    async def coefficients(
        self,
        preference: Mapping[str, float] | None = None,
        *,
        method: str | None = None,
        model: str | None = None,
        steering: Mapping[str, Any] | None = None,
    ) -> CoefficientsReport:
        """The member weights a preference becomes, without generating anything.

        Examples:
            >>> import asyncio
            >>> from ladle.clients import AsyncClient
            >>> async def main():
            ...     async with AsyncClient() as ladle:
            ...         return (await ladle.coefficients({"positive": 1}, method="bone_soup")).coefficients
            >>> asyncio.run(main())
            {'bone-positive': 1.75, 'bone-concise': -0.75}

        Takes what ``Client.coefficients`` takes and raises what it raises.
        """
        return await self._run(self._calls.coefficients(model, preference, method, steering))

    async def families(self) -> list[Family]:
        """The families this server has.

        Examples:
            >>> import asyncio
            >>> from ladle.clients import AsyncClient
            >>> async def main():
            ...     async with AsyncClient() as ladle:
            ...         return [family.name for family in await ladle.families()]
            >>> asyncio.run(main())
            ['demo']
        """
        return await self._run(self._calls.families())

    async def family(self, name: str) -> Family:
        """One family: its objectives, members, and which methods it can serve and why not.

        Examples:
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
        return await self._run(self._calls.family(name))

    async def models(self) -> list[Model]:
        """What may be given as ``model``: families and presets.

        Examples:
            >>> import asyncio
            >>> from ladle.clients import AsyncClient
            >>> async def main():
            ...     async with AsyncClient() as ladle:
            ...         return [model.id for model in await ladle.models()]
            >>> asyncio.run(main())
            ['demo', 'cheerful']
        """
        return await self._run(self._calls.models())

    async def health(self) -> bool:
        """Whether the server is alive; False if it cannot be reached.

        Examples:
            >>> import asyncio
            >>> from ladle.clients import AsyncClient
            >>> async def main():
            ...     async with AsyncClient() as ladle:
            ...         return await ladle.health()
            >>> asyncio.run(main())
            True
        """
        return await self._run(self._calls.answers("/health"))

    async def ready(self) -> bool:
        """Whether the server takes requests: not while it loads, drains, or cannot be reached.

        Examples:
            >>> import asyncio
            >>> from ladle.clients import AsyncClient
            >>> async def main():
            ...     async with AsyncClient() as ladle:
            ...         return await ladle.ready()
            >>> asyncio.run(main())
            True
        """
        return await self._run(self._calls.answers("/ready"))

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
        if not stream:
            return await self._run(self._calls.generation(prompt, options))
        response, body = await self._run(self._calls.stream(prompt, options))
        calls = self._calls
        return AsyncStream(
            response, lists_tokens(body), lambda path, change: self._run(calls.json("POST", path, change))
        )

    async def _run(self, call: Call[_T]) -> _T:
        """Do what ``call`` asks for until it has its answer."""
        try:
            step = next(call)
            while True:
                if isinstance(step, Exchange):
                    outcome = await self._exchange(step)
                    step = call.send(outcome) if isinstance(outcome, httpx.Response) else call.throw(outcome)
                else:
                    await asyncio.sleep(step)
                    step = next(call)
        except StopIteration as done:
            answer: _T = done.value
            return answer

    async def _exchange(self, exchange: Exchange) -> httpx.Response | httpx.TransportError:
        request = self._http.build_request(exchange.method, exchange.url, json=exchange.body)
        try:
            response = await self._http.send(request, stream=exchange.stream)
            if exchange.stream and not response.is_success:
                await response.aread()
        except httpx.TransportError as error:
            return error
        return response
