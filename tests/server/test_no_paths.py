"""Nothing that a request says reaches file system or network: names are looked up among those that there are."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asgi import client_of
from fake_engine import FakeEngine, fake_state
from seeds import fresh_seed
from tool_templates import HERMES_TEMPLATE

from ladle.merging.family.family import Family
from ladle.server.access.api_keys import ApiKey, ApiKeys
from ladle.server.access.callers import ADMIN, GENERATE
from ladle.server.admin.loading import FamilyFiles
from ladle.server.native.generate_requests import CoefficientsRequest, GenerateRequest
from ladle.server.native.score_requests import ScoreRequest
from ladle.server.openai.completion_requests import ChatCompletionRequest, CompletionRequest

pytestmark = pytest.mark.anyio
SCHEMAS: dict[str, Any] = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
    "/v1/generate": GenerateRequest,
    "/v1/coefficients": CoefficientsRequest,
    "/v1/score": ScoreRequest,
}


class Watch:
    """Notes every audited act (opening, listing, connecting, ...) and every look at a file that has ``mark`` in it."""

    def __init__(self) -> None:
        self.mark: str | None = None
        self.seen: list[str] = []
        self.acts = 0

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        if self.mark is not None and event.partition(".")[0] in ("open", "os", "shutil", "glob", "socket", "import"):
            self.note(event, args)

    def note(self, what: str, args: Any) -> None:
        self.acts += 1
        if self.mark is not None and self.mark in repr(args):
            self.seen.append(f"{what}{args!r}")


WATCH = Watch()


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if not hasattr(sys, "ladle_watch"):  # a hook cannot be taken back
        sys.addaudithook(WATCH.audit)
        sys.ladle_watch = WATCH  # type: ignore[attr-defined]
    for name in ("stat", "lstat", "access", "readlink"):  # which are not audited
        original = getattr(os, name)

        def noted(path: Any, *args: Any, name: str = name, original: Any = original, **options: Any) -> Any:
            WATCH.note(name, path)
            return original(path, *args, **options)

        monkeypatch.setattr(os, name, noted)
    WATCH.mark, WATCH.seen, WATCH.acts = f"canary{fresh_seed()}", [], 0
    yield WATCH.mark
    WATCH.mark = None


def hostile(mark: str) -> list[str]:
    names = [f"/{mark}/x", f"../../{mark}", f"file:///{mark}", f"http://{mark}.invalid/x", f"{mark}\0", f"~{mark}"]
    return [*names, f"tiny/../{mark}", mark]


def bodies(path: str, text: str) -> Iterator[dict[str, Any]]:
    """Every field of the endpoint that is text somewhere, with ``text`` in it."""
    messages = [{"role": "user", "content": text}]
    whole: dict[str, Any] = {"messages": messages} if "chat" in path else {"prompt": text}
    whole = {} if "coefficients" in path else whole
    schema = {"type": "object", "properties": {"a": {"$ref": text}}, "$id": text, "$schema": text}
    function = {"type": "function", "function": {"name": "f", "description": text, "parameters": {"$ref": text}}}
    values: list[Any] = [text, [text], {text: text}, {"path": text}, {text: 1}, {"type": text}]
    values += [{"method": text}, {"preference": {text: 1}}, {"negative_prompt": text}, {"terms": [{"member": text}]}]
    values += [{"json": schema}, {"regex": text}, {"choice": [text]}, [function]]
    values += [{"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}]
    for name in [*SCHEMAS[path].model_fields, "adapter", "template", "chat_template"]:
        for value in values:
            yield {**whole, name: value}


@pytest.mark.parametrize("path", SCHEMAS)
async def test_bodies(family: Family, engine: FakeEngine, mark: str, path: str) -> None:
    engine.tokenizer.chat_template = HERMES_TEMPLATE
    async with client_of(fake_state(family, engine)) as client:
        for text in hostile(mark)[1:3]:
            for body in bodies(path, text):
                reply = await client.post(path, json={**body, "max_tokens": 1} if "coeff" not in path else body)
                assert reply.status_code in (200, 400, 404), reply.text
    assert not WATCH.seen


async def test_paths_queries_and_headers(family: Family, engine: FakeEngine, mark: str, tmp_path: Path) -> None:
    state = fake_state(family, engine, families_dir=tmp_path)
    state.loader = FamilyFiles(state.settings)
    state.keys = ApiKeys([ApiKey.of("a", "a", [ADMIN, GENERATE])])
    async with client_of(state, headers={"authorization": "Bearer a"}) as client:
        for text in hostile(mark):
            name = text.replace("/", "%2f").replace("\0", "%00")
            headers = {"x-request-id": text.replace("\0", ""), "host": mark, "referer": mark}
            for method, path in (
                ("GET", f"/v1/models/{name}"),
                ("GET", f"/v1/families/{name}"),
                ("GET", f"/playground/{name}"),
                ("GET", f"/{name}"),
                ("GET", f"/docs/{name}"),
                ("POST", f"/v1/admin/families/{name}/reload?order={name}"),
                ("POST", f"/v1/admin/families/{name}/unload"),
                ("POST", f"/v1/admin/families/tiny/members/{name}/load"),
                ("POST", f"/v1/admin/families/tiny/members/{name}/unload"),
            ):
                reply = await client.request(method, path, headers=headers)
                assert reply.status_code in (400, 404, 409), (method, path, reply.text)
            for path, body in (("families", {"family": text}), ("caches/reset", {"family": text})):
                reply = await client.post(f"/v1/admin/{path}", json=body)
                assert reply.status_code in (400, 404), reply.text
    assert not WATCH.seen


def test_the_watch_sees_what_it_should(mark: str, tmp_path: Path) -> None:
    (tmp_path / mark).exists()
    assert len(WATCH.seen) == 1
    with pytest.raises(OSError):
        (tmp_path / mark).read_bytes()
    assert len(WATCH.seen) == 2
    with pytest.raises(OSError):
        os.listdir(tmp_path / mark)
    assert len(WATCH.seen) == 3
