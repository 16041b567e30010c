"""The synchronous client. ``async_client.py`` is its twin, method by method; both run the calls of ``calls.py``."""

import time
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
from ladle.clients.stream import Stream

_T = TypeVar("_T")


class Client:
    """A client of one Ladle server. Safe to share between threads; close it, or use it as a context manager.

    Examples:
        >>> from ladle.clients import Client
        >>> with Client("http://localhost:8000") as ladle:
        ...     reply = ladle.chat("Tell me about rain.", preference={"positive": 0.8, "concise": 0.2})
        >>> reply.text
        'Rain is lovely.'

    Args:
        url: where the server is; else ``LADLE_URL``, else ``http://localhost:8000``.
        api_key: sent as a bearer token; else ``LADLE_API_KEY``, else none.
        timeout: seconds of silence to accept, or an ``httpx.Timeout``; 600, and 10 to connect, if None.
        max_retries: how often a request is repeated that met an overloaded or absent server. One that has begun to
            stream never is.
        transport: how requests travel, for tests: an ``httpx.MockTransport``, for instance.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float | httpx.Timeout | None = None,
        max_retries: int = 2,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        connection = Connection.resolve(url, api_key, timeout)
        self.url = connection.url
        self._calls = Calls(connection.url, RetryPolicy(max_retries))
        self._http = httpx.Client(headers=connection.headers, timeout=connection.timeout, transport=transport)

    @overload
    def chat(
        self, prompt: str | Sequence[Message], *, stream: Literal[False] = False, **options: Unpack[Options]
    ) -> Generation: ...
    @overload
    def chat(self, prompt: str | Sequence[Message], *, stream: Literal[True], **options: Unpack[Options]) -> Stream: ...
    def chat(
        self, prompt: str | Sequence[Message], *, stream: bool = False, **options: Unpack[Options]
    ) -> Generation | Stream:
        """Answer a conversation, in the model's chat format.

        Examples:
            >>> from ladle.clients import Client
            >>> with Client() as ladle:
            ...     history = [{"role": "user", "content": "Tell me about rain."}]
            ...     reply = ladle.chat(history, preference={"positive": 1}, method="bone_soup", max_tokens=64, seed=7)
            ...     history += [reply.message, {"role": "user", "content": "And about snow?"}]
            ...     print(reply.text, reply.steering.preference)
            Rain is lovely. {'positive': 1.0}

        Args:
            prompt: what the user says, or the messages so far.
            stream: give a ``Stream`` of tokens instead of the complete answer.
            **options: see ``Options``: steering, model and sampling.

        Raises:
            UsageError: unknown options, or no ``model`` where the server has several families.
            APIError: the server's refusal; see ``ladle.clients.errors`` for its kinds.
            ConnectionError: the server cannot be reached, or it went away.
        """
        return self._generate({"messages": as_messages(prompt)}, stream, options)

    @overload
    def generate(self, prompt: str, *, stream: Literal[False] = False, **options: Unpack[Options]) -> Generation: ...
    @overload
    def generate(self, prompt: str, *, stream: Literal[True], **options: Unpack[Options]) -> Stream: ...
    def generate(self, prompt: str, *, stream: bool = False, **options: Unpack[Options]) -> Generation | Stream:
        """Continue a text as it stands, without a chat format.

        Examples:
            >>> from ladle.clients import Client
            >>> with Client() as ladle:
            ...     for token in ladle.generate("Once", preference={"simple": 1}, stream=True, trace=True):
            ...         print(repr(token.text), token.token.shift)
            ' upon' 0.25
            ' a' 0.5
            ' time' 0.0
            '.' 0.125

        Takes what ``chat`` takes and raises what it raises.
        """
        return self._generate({"prompt": prompt}, stream, options)

    def score(
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
            >>> from ladle.clients import Client
            >>> with Client() as ladle:
            ...     reply = ladle.score("Rain is", [" lovely.", " wet."], by="likelihood", preference={"positive": 1})
            ...     [text.score for text in reply.scores]
            [-1.5, -2.5]

        Args:
            prompt: a text that is continued, or the messages that are answered.
            texts: each a string, or token ids. It is tokenised by itself.
            by: ``likelihood`` under the method and its options; the family's ``implicit`` or ``explicit`` values
                weighed by the preference; its ``router``; or ``{"ask": a question}`` to the base.
            per: ``token`` to divide by the tokens of a text, default ``answer``.
            end: count the token that ends an answer as the last one of every text.
            preference: as for ``chat``.
            method: as for ``chat``.
            model: as for ``chat``.
            steering: further options of the method.

        Raises what ``chat`` raises.
        """
        given = {"per": per, "end": end, "preference": preference, "method": method}
        return self._run(self._calls.score(model, prompt, texts, by, steering, **given))

    def coefficients(
        self,
        preference: Mapping[str, float] | None = None,
        *,
        method: str | None = None,
        model: str | None = None,
        steering: Mapping[str, Any] | None = None,
    ) -> CoefficientsReport:
        """The member weights a preference becomes, without generating anything.

        Examples:
            >>> from ladle.clients import Client
            >>> with Client() as ladle:
            ...     ladle.coefficients({"positive": 1}, method="bone_soup").coefficients
            {'bone-positive': 1.75, 'bone-concise': -0.75}

        Args:
            preference: as for ``chat``.
            method: as for ``chat``.
            model: as for ``chat``.
            steering: further options that change the sources and their weights, such as ``strength``.

        Raises what ``chat`` raises.
        """
        return self._run(self._calls.coefficients(model, preference, method, steering))

    def families(self) -> list[Family]:
        """The families this server has.

        Examples:
            >>> from ladle.clients import Client
            >>> with Client() as ladle:
            ...     [family.name for family in ladle.families()]
            ['demo']
        """
        return self._run(self._calls.families())

    def family(self, name: str) -> Family:
        """One family: its objectives, members, and which methods it can serve and why not.

        Examples:
            >>> from ladle.clients import Client
            >>> with Client() as ladle:
            ...     ladle.family("demo").methods["mage"].reason
            'the family has no value models'

        Raises:
            NotFoundError: there is none of that name.
        """
        return self._run(self._calls.family(name))

    def models(self) -> list[Model]:
        """What may be given as ``model``: families and presets.

        Examples:
            >>> from ladle.clients import Client
            >>> with Client() as ladle:
            ...     [model.id for model in ladle.models()]
            ['demo', 'cheerful']
        """
        return self._run(self._calls.models())

    def health(self) -> bool:
        """Whether the server is alive; False if it cannot be reached.

        Examples:
            >>> from ladle.clients import Client
            >>> with Client() as ladle:
            ...     ladle.health()
            True
        """
        return self._run(self._calls.answers("/health"))

    def ready(self) -> bool:
        """Whether the server takes requests: not while it loads, drains, or cannot be reached.

        Examples:
            >>> from ladle.clients import Client
            >>> with Client() as ladle:
            ...     ladle.ready()
            True
        """
        return self._run(self._calls.answers("/ready"))

    def close(self) -> None:
        """Give back all connections. Streams still open end."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _generate(self, prompt: Mapping[str, Any], stream: bool, options: Options) -> Generation | Stream:
        if not stream:
            return self._run(self._calls.generation(prompt, options))
        response, body = self._run(self._calls.stream(prompt, options))
        return Stream(
            response, lists_tokens(body), lambda path, change: self._run(self._calls.json("POST", path, change))
        )

    def _run(self, call: Call[_T]) -> _T:
        """Do what ``call`` asks for until it has its answer."""
        try:
            step = next(call)
            while True:
                if isinstance(step, Exchange):
                    outcome = self._exchange(step)
                    step = call.send(outcome) if isinstance(outcome, httpx.Response) else call.throw(outcome)
                else:
                    time.sleep(step)
                    step = next(call)
        except StopIteration as done:
            answer: _T = done.value
            return answer

    def _exchange(self, exchange: Exchange) -> httpx.Response | httpx.TransportError:
        request = self._http.build_request(exchange.method, exchange.url, json=exchange.body)
        try:
            response = self._http.send(request, stream=exchange.stream)
            if exchange.stream and not response.is_success:
                response.read()
        except httpx.TransportError as error:
            return error
        return response
