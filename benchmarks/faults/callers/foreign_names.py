"""What a web page gets whose name was made to point at a server (DNS rebinding)."""

from __future__ import annotations

import json

import aiohttp

from ladle.benchmarks.faults.request_storm import session_of
from ladle.benchmarks.faults.server_under_test import ServerUnderTest

OWN = ("localhost", "localhost:8000", "127.0.0.1", "[::1]:8000")
FOREIGN = (
    "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "evil", "evil.example.",
    "[evil.example]", "localhost@evil.example", "", "evil.example:localhost",
    "localhost:80@evil.example", "127.0.0.1:80:evil.example", "[::1].evil.example", "[::1", "localhost,evil.example",
)  # fmt: skip
_PATHS = ("/v1/models", "/v1/generate", "/metrics", "/", "/docs", "/openapi.json", "/tokenize")


async def run(server: ServerUnderTest) -> dict[str, object]:
    """One row: all that can be asked, by names that are the server's and by others."""
    wrong = []
    asked = 0
    async with session_of(server) as session:
        for host in (*OWN, *FOREIGN):
            for path in _PATHS:
                status, text = await _ask(session, path, host)
                asked += 1
                refused = status == 400 and "invalid_host" in text
                if refused == (host in OWN) or (host in OWN and status != 200):
                    wrong.append(f"{host!r} {path}: {status} {text[:100]}")
            if (status := (await _ask(session, "/health", host))[0]) != 200:
                wrong.append(f"{host!r} /health: {status}")
    return {
        "run": "rebinding",
        "count": asked,
        "wrong": len(wrong),
        "first_wrong": wrong[:5],
        "tracebacks": len(server.failures()),
    }


async def _ask(session: aiohttp.ClientSession, path: str, host: str) -> tuple[int, str]:
    bodies = {"/v1/generate": {"prompt": "rain", "max_tokens": 1}, "/tokenize": {"prompt": "rain"}}
    body = bodies.get(path)
    headers = {"host": host, "content-type": "application/json"}
    data = None if body is None else json.dumps(body)
    async with session.request("GET" if body is None else "POST", path, data=data, headers=headers) as reply:
        return reply.status, await reply.text()
