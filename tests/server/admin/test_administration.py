"""Administration over doubles: who may, what is served when, and that nothing goes while somebody holds it."""

import asyncio
import json

import httpx
import pytest
from asgi import Call, client_of, wait_until
from fake_engine import FakeEngine
from fake_loader import FakeControls, FakeLoader, GatedEngine

from ladle.merging.family.family import Family
from ladle.server.access.api_keys import ApiKey, ApiKeys
from ladle.server.access.callers import ADMIN, GENERATE
from ladle.server.app import build_app
from ladle.server.hosting import Hosted
from ladle.server.settings import ServerSettings
from ladle.server.state import Phase, ServerState

pytestmark = pytest.mark.anyio
ADMINISTRATOR = {"authorization": "Bearer both"}


@pytest.fixture
def loader(family: Family) -> FakeLoader:
    return FakeLoader(family, "one", "two", "three")


@pytest.fixture
def state(loader: FakeLoader) -> ServerState:
    keys = ApiKeys([ApiKey.of("user", "user"), ApiKey.of("both", "both", [ADMIN, GENERATE])])
    state = ServerState(ServerSettings(), keys, loader=loader)
    state.publish(loader.load("one"))
    return state


def engine_of(hosted: Hosted) -> GatedEngine:
    engine = hosted.live.engine
    assert isinstance(engine, GatedEngine)
    return engine


def closed(hosted: Hosted) -> int:
    assert isinstance(hosted.engine_admin, FakeControls)
    return hosted.engine_admin.closed


async def said(client: httpx.AsyncClient, model: str | None = None) -> str:
    body = {"prompt": "hi", "model": model} if model else {"prompt": "hi"}
    reply = await client.post("/v1/generate", json=body)
    return reply.json()["choices"][0]["text"] if reply.status_code == 200 else reply.json()["error"]["code"]


def as_admin(state: ServerState):  # type: ignore[no-untyped-def]
    return client_of(state, headers=ADMINISTRATOR)


@pytest.mark.parametrize("key", [None, "user", "unknown"])
async def test_only_administrators(state: ServerState, family: Family, engine: FakeEngine, key: str | None) -> None:
    """Every operation that the document lists under /v1/admin/."""
    paths = build_app(state).openapi()["paths"]
    operations = [(method, path) for path, found in paths.items() if "/admin/" in path for method in found]
    assert len(operations) == 10
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    open_state = ServerState(ServerSettings(), None, loader=state.loader)
    async with client_of(state) as client, client_of(open_state) as unlocked:
        for method, path in operations:
            path = path.replace("{name}", "one").replace("{member}", "x")
            refused = await client.request(method, path, headers=headers)
            assert refused.status_code == (403 if key == "user" else 401), (method, path)
            assert (await unlocked.request(method, path, headers=headers)).status_code == 403, (method, path)
    assert state.phase is Phase.READY and list(state.hosting.families) == ["one"]


async def test_families_come_and_go(state: ServerState, loader: FakeLoader) -> None:
    async with as_admin(state) as client:
        assert await said(client) == "one 0" and await said(client, "two") == "model_not_found"
        loaded = await client.post("/v1/admin/families", json={"family": "two"})
        assert loaded.status_code == 200 and loaded.json()["name"] == "two"
        assert await said(client) == "one 0" and await said(client, "two/base") == "two 1"
        assert await said(client, "two@positive=1,simple=1") == "two 1"
        await client.post("/v1/admin/families", json={"family": "three", "first": True})
        assert await said(client) == "three 2" and await said(client, "one") == "one 0"
        names = [model["id"] for model in (await client.get("/v1/models")).json()["data"]]
        assert {"one", "two", "three", "two/base"} <= set(names) and names[0] == "three"
        families = (await client.get("/v1/families")).json()["data"]
        assert [found["name"] for found in families] == ["three", "one", "two"]
        assert (await client.get("/v1/families/two")).json()["name"] == "two"
        unknown = (await client.get("/v1/models/four")).json()["error"]
        assert unknown["code"] == "model_not_found" and all(name in unknown["message"] for name in ("one", "two"))
        status = (await client.get("/v1/admin/status")).json()
        assert [found["name"] for found in status["families"]] == ["three", "one", "two"]
        assert status["available"] == ["one", "two", "three"] and status["phase"] == "ready"
        assert status["families"][0]["weights_bytes"] == 1000 and status["families"][0]["kv_bytes"] == 200
        again = await client.post("/v1/admin/families", json={"family": "two"})
        assert again.status_code == 409 and "served already" in again.json()["error"]["message"]
        await wait_until(lambda: not state.hosting.retiring)
        for name in ("three", "one", "two"):
            assert (await client.post(f"/v1/admin/families/{name}/unload")).json()["state"] == "retiring"
            assert (await client.post(f"/v1/admin/families/{name}/unload")).status_code == 404
        await wait_until(lambda: not state.hosting.retiring)
        assert await said(client) == "no_family" and await said(client, "one") == "no_family"
        ready = await client.get("/ready")
        assert ready.status_code == 503 and ready.json()["error"]["code"] == "no_family"
        assert (await client.get("/health")).status_code == 200, "nothing is broken"
        await client.post("/v1/admin/families", json={"family": "one"})
        assert (await said(client)).startswith("one") and (await client.get("/ready")).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_what_runs_is_not_disturbed(state: ServerState, loader: FakeLoader, stream: bool) -> None:
    """Loaded anew while a request runs: it ends on the engine that it began on, which goes when it has ended."""
    old = loader.loaded[0]
    engine = engine_of(old)
    engine.hold_after = 2
    body = json.dumps({"prompt": "hi", "stream": stream}).encode()
    app = build_app(state)
    call = Call(app, "/v1/generate", body, ADMINISTRATOR)
    await wait_until(lambda: engine.running)
    async with as_admin(state) as client:
        assert (await client.post("/v1/admin/families/one/reload")).status_code == 200
        assert await said(client) == "one 1"
        status = (await client.get("/v1/admin/status")).json()["families"]
        assert [(found["state"], found["requests"]) for found in status] == [("serving", 0), ("retiring", 1)]
        assert closed(old) == 0 and not call.task.done()
        controls = old.engine_admin
        engine.gate.set()
        await asyncio.wait_for(call.task, 60)
        assert call.status == 200 and (b"[DONE]" in call.body if stream else b'"one 0"' in call.body)
        await asyncio.wait_for(old.gone.wait(), 60)
        assert isinstance(controls, FakeControls) and controls.closed == 1
        assert old.serving is None and not state.hosting.retiring and old.users == 0
        assert await said(client) == "one 1"


async def test_a_client_that_leaves_lets_go_too(state: ServerState, loader: FakeLoader) -> None:
    old = loader.loaded[0]
    engine = engine_of(old)
    engine.hold_after = 1
    calls = [
        Call(build_app(state), "/v1/generate", json.dumps({"prompt": "hi", "stream": stream}).encode(), ADMINISTRATOR)
        for stream in (False, True)
    ]
    await wait_until(lambda: old.users == 2)
    async with as_admin(state) as client:
        await client.post("/v1/admin/families/one/unload")
        for call in calls:
            assert not old.gone.is_set()
            call.leave()
            await asyncio.wait_for(call.task, 60)
        await asyncio.wait_for(old.gone.wait(), 60)


async def test_one_after_the_other(state: ServerState, loader: FakeLoader) -> None:
    """With the memory of one: the old one goes first, and meanwhile the family is not there, which is no 404."""
    old = loader.loaded[0]
    engine_of(old).hold_after = 1
    call = Call(build_app(state), "/v1/generate", b'{"prompt": "hi"}', ADMINISTRATOR)
    await wait_until(lambda: old.users == 1)
    async with as_admin(state) as client:
        await client.post("/v1/admin/families", json={"family": "two"})
        reloading = asyncio.create_task(client.post("/v1/admin/families/one/reload", params={"order": "after"}))
        await wait_until(lambda: "one" not in state.hosting.families)
        assert await said(client, "one") == "reloading" and await said(client, "two") == "two 1"
        assert await said(client) == "two 1", "any family that is there serves those that name none"
        busy = await client.post("/v1/admin/families", json={"family": "three"})
        assert busy.status_code == 409 and busy.json()["error"]["code"] == "busy" and busy.headers["retry-after"]
        loader.wait.clear()
        loader.loading.clear()
        engine_of(old).gate.set()
        await asyncio.wait_for(call.task, 60)
        assert await asyncio.to_thread(loader.loading.wait, 60) and old.serving is None, "first it went"
        assert (await client.get("/v1/admin/status")).json()["changing"] == "reloading one"
        loader.wait.set()
        assert (await asyncio.wait_for(reloading, 60)).status_code == 200
        assert await said(client) == "one 2" and await said(client, "one") == "one 2"


@pytest.mark.parametrize("order", ["beside", "after"])
async def test_what_cannot_be_loaded_is_told_and_the_old_one_goes_on(
    state: ServerState, loader: FakeLoader, order: str
) -> None:
    loader.broken = {"one", "two"}
    async with as_admin(state) as client:
        for call in (
            client.post("/v1/admin/families", json={"family": "two"}),
            client.post("/v1/admin/families/one/reload", params={"order": order}),
        ):
            refused = await call
            assert refused.status_code == 409 and refused.json()["error"]["code"] == "broken_family"
            assert "it is broken" in refused.json()["error"]["message"]
        assert await said(client) == ("one 0" if order == "beside" else "no_family")
        loader.broken.clear()
        path = "/v1/admin/families/one/reload" if order == "beside" else "/v1/admin/families"
        assert (await client.post(path, json={"family": "one"})).status_code == 200
        assert await said(client) == "one 1"


async def test_a_name_means_one_thing(state: ServerState, loader: FakeLoader) -> None:
    """A preset that is called like a family, or like another family's preset, would hide it."""
    loader.presets = {"two": "one", "three": "same"}
    async with as_admin(state) as client:
        refused = await client.post("/v1/admin/families", json={"family": "two"})
        assert refused.status_code == 409 and "'one' is the name" in refused.json()["error"]["message"]
        assert loader.loaded[-1].gone.is_set() and list(state.hosting.families) == ["one"]
        assert (await client.post("/v1/admin/families", json={"family": "three"})).status_code == 200
        assert await said(client, "same") == "three 2", "a preset means its family"
        loader.presets = {"two": "same"}
        assert (await client.post("/v1/admin/families", json={"family": "two"})).status_code == 409


async def test_members(state: ServerState, loader: FakeLoader) -> None:
    path = "/v1/admin/families/one/members/only-positive"
    async with as_admin(state) as client:
        before = (await client.get("/v1/admin/status")).json()["families"][0]["members"]
        assert "only-positive" in before
        gone = (await client.post(f"{path}/unload")).json()
        assert gone["left_out"] == ["only-positive"] and set(gone["members"]) == set(before) - {"only-positive"}
        assert (await client.post(f"{path}/unload")).status_code == 404
        assert (await client.post("/v1/admin/families/one/reload")).json()["left_out"] == ["only-positive"]
        assert (await client.post("/v1/admin/families/one/members/only-simple/unload")).json()["left_out"] == [
            "only-positive",
            "only-simple",
        ]
        back = (await client.post(f"{path}/load")).json()
        assert back["left_out"] == ["only-simple"] and "only-positive" in back["members"]
        unknown = await client.post("/v1/admin/families/one/members/nobody/load")
        assert unknown.status_code == 404 and unknown.json()["error"]["param"] == "member"
        assert (await client.post("/v1/admin/families/nobody/members/x/load")).json()["error"]["param"] == "name"
        await wait_until(lambda: not state.hosting.retiring)


async def test_pausing(state: ServerState, loader: FakeLoader) -> None:
    engine_of(loader.loaded[0]).hold_after = 1
    call = Call(build_app(state), "/v1/generate", b'{"prompt": "hi"}', ADMINISTRATOR)
    await wait_until(lambda: state.active == 1)
    async with as_admin(state) as client:
        for _ in range(2):
            paused = (await client.post("/v1/admin/drain")).json()
            assert paused["phase"] == "paused" and paused["requests"] == 1
        assert await said(client) == "paused" and (await client.get("/v1/models")).status_code == 503
        ready = await client.get("/ready")
        assert ready.status_code == 503 and "1 requests are running" in ready.json()["error"]["message"]
        assert (await client.get("/health")).status_code == 200
        assert (await client.post("/v1/admin/families", json={"family": "two"})).status_code == 200
        engine_of(loader.loaded[0]).gate.set()
        await asyncio.wait_for(call.task, 60)
        assert call.status == 200 and (await client.get("/v1/admin/status")).json()["requests"] == 0
        for _ in range(2):
            assert (await client.post("/v1/admin/resume")).json()["phase"] == "ready"
        assert await said(client) == "one 0" and (await client.get("/ready")).status_code == 200
        state.phase = Phase.DRAINING  # by a signal, which nobody takes back
        for path in ("drain", "resume"):
            refused = await client.post(f"/v1/admin/{path}")
            assert refused.status_code == 409 and "draining" in refused.json()["error"]["message"]
        assert state.phase is Phase.DRAINING
        refused = await client.post("/v1/admin/families", json={"family": "three"})
        assert refused.status_code == 409


async def test_caches(state: ServerState, loader: FakeLoader) -> None:
    async with as_admin(state) as client:
        await client.post("/v1/admin/families", json={"family": "two"})
        seen = (await client.get("/v1/admin/caches")).json()["data"]
        assert [found["family"] for found in seen] == ["one", "two"]
        assert seen[0]["prefix"]["reusable"] == 3 and seen[0]["merged"]["sets"] == 2 and seen[0]["grammars"] == 0
        body = {"prompt": "hi", "model": "two", "structured_outputs": {"regex": "t[a-z]*"}}
        await client.post("/v1/generate", json=body)
        assert (await client.get("/v1/admin/caches")).json()["data"][1]["grammars"] == 1
        everything = (await client.post("/v1/admin/caches/reset", json={})).json()["data"]
        assert everything == [
            {"family": "one", "dropped": {"prefix": 3, "merged": 2, "grammar": 0}},
            {"family": "two", "dropped": {"prefix": 3, "merged": 2, "grammar": 1}},
        ]
        one = await client.post("/v1/admin/caches/reset", json={"family": "two", "caches": ["merged"]})
        assert one.json()["data"] == [{"family": "two", "dropped": {"merged": 2}}]
        for body, param in (({"family": "nobody"}, "name"), ({"caches": ["all"]}, "caches[0]"), ({"x": 1}, "x")):
            refused = await client.post("/v1/admin/caches/reset", json=body)
            assert refused.status_code in (400, 404) and refused.json()["error"]["param"] == param
        assert all(hosted.users == 0 for hosted in loader.loaded)


async def test_names_are_looked_up_and_nothing_else(state: ServerState) -> None:
    async with as_admin(state) as client:
        for name in ("../one", "/etc", "one/..", "file:///etc/passwd", "~", ".", "", "one\u0000", "x" * 300):
            refused = await client.post("/v1/admin/families", json={"family": name})
            assert refused.status_code in (400, 404), name
        assert (await client.post("/v1/admin/families/..%2fone/reload")).status_code == 404
        wrong = await client.post("/v1/admin/families/one/reload", params={"order": "never"})
        assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "order"


async def test_a_load_that_a_shutdown_overtakes_serves_nobody(state: ServerState, loader: FakeLoader) -> None:
    loader.wait.clear()
    async with as_admin(state) as client:
        loading = asyncio.create_task(client.post("/v1/admin/families", json={"family": "two"}))
        await wait_until(lambda: state.hosting.changing)
        state.phase = Phase.DRAINING
        assert state.hosting.computing
        loader.wait.set()
        assert (await asyncio.wait_for(loading, 60)).status_code == 409
    assert list(state.hosting.families) == ["one"] and loader.loaded[1].gone.is_set()
