"""Where the server is and how to speak to it; the same for both clients."""

import os
from dataclasses import dataclass
from importlib.metadata import version

import httpx

from ladle.clients.errors import UsageError

DEFAULT_URL = "http://localhost:8000"
# A long generation without streaming is silent until its end; a server that is there accepts at once.
DEFAULT_TIMEOUT = httpx.Timeout(600.0, connect=10.0)


@dataclass(frozen=True)
class Connection:
    """Resolved connection settings: arguments first, then ``LADLE_URL`` and ``LADLE_API_KEY``, then the default."""

    url: str
    headers: dict[str, str]
    timeout: httpx.Timeout

    @classmethod
    def resolve(cls, url: str | None, api_key: str | None, timeout: float | httpx.Timeout | None) -> "Connection":
        headers = {"user-agent": f"ladle/{version('ladle')}"}
        if key := api_key or os.environ.get("LADLE_API_KEY"):
            headers["authorization"] = f"Bearer {key}"
        return cls(
            url=server_url(url or os.environ.get("LADLE_URL") or DEFAULT_URL),
            headers=headers,
            timeout=DEFAULT_TIMEOUT if timeout is None else httpx.Timeout(timeout),
        )


def server_url(text: str) -> str:
    """The address of a server as people write it: without http://, or with the /v1 that OpenAI's clients want.

    Raises:
        UsageError: it is none.
    """
    text = text.strip()
    if "://" not in text:
        text = f"http://{text}"
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise UsageError(f"url: {text!r} is not allowed; allowed: an address such as {DEFAULT_URL} ({error})") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise UsageError(f"url: {text!r} is not allowed; allowed: an address such as {DEFAULT_URL}")
    return text.rstrip("/").removesuffix("/v1").rstrip("/")
