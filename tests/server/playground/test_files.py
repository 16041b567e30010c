"""The page at ``/`` as a server hands it out, and that what it sends and reads is what the API takes and gives."""

import fnmatch
import json
import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from asgi import client_of
from fake_engine import FakeEngine, fake_state

from ladle.guidance.plan import Steering
from ladle.merging.family.family import Family
from ladle.server.access.api_keys import ApiKeys
from ladle.server.native.generate_requests import CoefficientsRequest, GenerateRequest, LiveSteeringRequest
from ladle.server.replies.reply_types import Token
from ladle.server.routes.playground import assets
from ladle.server.settings import ServerSettings
from ladle.server.state import ServerState

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = {name: asset.body.decode() for name, asset in assets().items() if name.endswith(".js")}
PAGE = assets()["index.html"].body.decode()


def constant(script: str, name: str) -> Any:
    """A constant of a script that is written as JSON."""
    found = re.search(rf"^export const {name} = (\{{.*?^\}});$", SCRIPTS[script], re.DOTALL | re.MULTILINE)
    assert found, f"{script} has no constant {name}"
    return json.loads(found[1])


async def test_the_page_and_its_headers() -> None:
    state = ServerState(ServerSettings())  # nothing is loaded yet
    async with client_of(state) as client:
        page = await client.get("/")
        assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'self';") and "unsafe" not in policy and "http" not in policy
        for name, asset in assets().items():
            reply = page if name == "index.html" else await client.get(f"/playground/{name}")
            assert reply.content == asset.body and reply.headers["cache-control"] == "no-cache"
            assert reply.headers["x-content-type-options"] == "nosniff"
            path = reply.request.url.path
            for tags in (reply.headers["etag"], f'"other", W/{reply.headers["etag"]}', "*"):
                again = await client.get(path, headers={"If-None-Match": tags})
                assert again.status_code == 304 and not again.content, "it was not changed"
                assert again.headers["etag"] == reply.headers["etag"]
            assert (await client.get(path, headers={"If-None-Match": '"other"'})).status_code == 200
        head = await client.head("/")
        assert head.status_code == 200 and not head.content
        assert (await client.get("/playground/look.css")).headers["content-type"] == "text/css; charset=utf-8"
        for path in ("/playground/main.py", "/playground/index.html", "/playground/..%2fapp.py", "/playground/"):
            missing = await client.get(path)
            assert missing.status_code == 404 and missing.json()["error"]["type"] == "invalid_request_error", path
        assert (await client.post("/")).status_code == 405


async def test_it_is_open_where_the_api_is_not_and_can_be_left_out() -> None:
    async with client_of(ServerState(ServerSettings(), ApiKeys.of("secret"))) as client:
        assert (await client.get("/")).status_code == 200
        assert (await client.get("/v1/families")).status_code == 401
    async with client_of(ServerState(ServerSettings(playground=False))) as client:
        assert (await client.get("/")).status_code == 404
        assert (await client.get("/playground/main.js")).status_code == 404


def test_nothing_in_it_is_inline_or_comes_from_elsewhere() -> None:
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:|<script(?![^>]*\ssrc=)", PAGE)
    for name, text in {**SCRIPTS, "index.html": PAGE}.items():
        assert "//" not in re.sub(r"(?m)//( .*)?$|http://www\.w3\.org", "", text), f"{name} names another host"
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            name
        )
    for name in ("look.css", "answers.css", "page.css"):
        assert not re.search(r"url\(|@import", assets()[name].body.decode()), name


def test_every_file_is_there_loaded_early_and_packaged() -> None:
    wanted = set(re.findall(r'(?:src|href)="playground/([^"]+)"', PAGE))
    assert wanted == set(assets()) - {"index.html"}
    for name, text in SCRIPTS.items():
        assert set(re.findall(r'from "\./([^"]+)"', text)) <= wanted, name
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"][
        "ladle.server"
    ]
    for path in (ROOT / "server" / "playground").iterdir():
        assert path.name in assets(), f"{path.name} is not served"
        assert any(fnmatch.fnmatch(f"playground/{path.name}", pattern) for pattern in patterns), path.name


def test_what_it_sends_is_what_the_api_takes() -> None:
    sent = constant("fields.js", "FIELDS")
    assert set(sent["generate"]) <= set(GenerateRequest.model_fields)
    assert set(sent["live"]) <= set(LiveSteeringRequest.model_fields)
    assert set(sent["coefficients"]) <= set(CoefficientsRequest.model_fields)
    # What has a control of its own; tests/package compares the others, and all of them with the table.
    controls = constant("steering_options.js", "OPTIONS")
    assert set(sent["steering"]) == {"method", "preference", "target", "strength", "rank", "trace"}
    assert set(controls).isdisjoint(sent["steering"]) and set(controls) < {field.name for field in fields(Steering)}


def test_what_it_reads_of_a_token_is_there() -> None:
    text = "".join(SCRIPTS[name] for name in ("answer.js", "inspector.js", "legend.js", "compare.js"))
    text += SCRIPTS["parts.js"]
    read = set(re.findall(r"\btoken\.([a-z_]+)\b", text))
    assert (
        {"logprob", "shift", "router", "values", "part", "monitors", "reasoning_content"}
        <= read
        <= set(Token.__annotations__)
    )


async def test_coefficients_take_a_whole_steering(family: Family, engine: FakeEngine) -> None:
    preference = {"positive": 0.75, "simple": 0.25}
    async with client_of(fake_state(family, engine)) as client:

        async def ask(**body: Any) -> Any:
            reply = await client.post("/v1/coefficients", json=body)
            return reply.json() if reply.status_code == 200 else reply.json()["error"]["param"]

        plain = await ask(method="bone_soup", preference=preference)
        assert await ask(steering={"method": "bone_soup", "preference": preference}) == plain
        double = await ask(steering={"method": "bone_soup", "preference": preference, "strength": 2})
        for member, value in plain["coefficients"].items():
            assert double["coefficients"][member] == pytest.approx(2 * value)
        assert await ask(method="bone_soup", steering={"preference": preference}) == "steering"
        assert await ask(steering={"method": "bone_soup", "preference": {"calm": 1}}) == "steering.preference.calm"
        assert await ask(method="bone_soup", preference={"calm": 1}) == "preference.calm"
        assert await ask(steering={"method": "base", "candidates": 3}) == "steering.candidates"
