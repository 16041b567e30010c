"""Administration over real engines: answers are what they would have been, and memory comes back."""

import asyncio
import gc
import os
import threading
import weakref
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgi import client_of, wait_until
from seeds import fresh_seed
from tiny_models import write_family, write_lora_member

from ladle.merging.family.place import installed_families
from ladle.server.access.api_keys import ApiKey, ApiKeys
from ladle.server.access.callers import ADMIN, GENERATE
from ladle.server.admin.loading import FamilyFiles
from ladle.server.engine.async_engine import AsyncEngine
from ladle.server.engine.engine import Engine
from ladle.server.hosting import Hosted
from ladle.server.settings import ServerSettings
from ladle.server.state import ServerState

pytestmark = pytest.mark.anyio
LONG = 120  # tokens
TEXT = "The rain in Spain stays mainly in the plain, and so it goes on and on. "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("families")
    write_family(root / "first", "llama", seed=3, name="tiny", max_position_embeddings=1024)
    write_family(root / "second", "llama", seed=4, name="other", max_position_embeddings=1024)
    (root / "empty").mkdir()
    return root


@pytest.fixture
def settings(folder: Path) -> ServerSettings:
    return ServerSettings(
        family=str(folder / "first"),
        families_dir=folder,
        device="cpu",
        dtype="float32",
        kv_memory=4 << 20,
    )


@pytest.fixture
async def state(settings: ServerSettings) -> AsyncIterator[ServerState]:
    files = FamilyFiles(settings)
    state = ServerState(settings, ApiKeys([ApiKey.of("a", "a", [ADMIN, GENERATE])]), loader=files)
    state.metrics.watch(state.hosting.stats)
    state.publish(files.load(settings.family))
    yield state
    await wait_until(lambda: not state.hosting.retiring, 60)
    state.hosting.close()


def admin(state: ServerState):  # type: ignore[no-untyped-def]
    return client_of(state, headers={"authorization": "Bearer a"})


async def logprobs(client: httpx.AsyncClient, length: int = 12, **fields: object) -> list[float]:
    body = {"prompt": TEXT, "temperature": 0, "max_tokens": length, "logprobs": True, **fields}
    body["logit_bias"] = {"0": -100, "2": -100}  # nothing ends it
    reply = await client.post("/v1/generate", json=body)
    assert reply.status_code == 200, reply.text
    return [token["logprob"] for token in reply.json()["choices"][0]["tokens"]]


def close(values: list[float]) -> Any:
    """One other token on the way would make another text."""
    return pytest.approx(values, abs=1e-3)


def engine_of(hosted: Hosted) -> Engine:
    wrapper = hosted.live.engine
    assert isinstance(wrapper, AsyncEngine)
    return wrapper.engine


def replace_member(path: Path, base: Path, seed: int) -> None:
    """Other weights under the same name, file by file in one act each: what is mapped stays what it was."""
    fresh = path.with_name(f"{path.name}-{seed}")
    write_lora_member(fresh, base, seed, r=2, size=0.5)
    for file in fresh.iterdir():
        os.replace(file, path / file.name)
    fresh.rmdir()


async def test_a_family_is_loaded_anew_under_running_requests(state: ServerState, folder: Path) -> None:
    """All that began before the change end as they would have, and what comes after it has the new weights: nothing
    of what was computed under the old ones is taken over."""
    wants = [{"positive": 1.0}, {"simple": 1.0}, {"positive": 0.5, "simple": 0.5}]

    def steering(preference: dict) -> dict:
        return {"steering": {"method": "bone_soup", "preference": preference}}

    async with admin(state) as client:
        expected = [await logprobs(client, LONG, **steering(preference)) for preference in wants]
        old = state.hosting.families["tiny"]
        engine = weakref.ref(engine_of(old))
        steps = state.hosting.stats().steps
        running = [asyncio.create_task(logprobs(client, LONG, **steering(preference))) for preference in wants]
        await wait_until(lambda: old.users == len(wants) or all(task.done() for task in running), 60)
        replace_member(folder / "first" / "adapters" / "bone-positive", folder / "first" / "base", fresh_seed() % 10**6)
        reloaded = await client.post("/v1/admin/families/tiny/reload")
        assert reloaded.status_code == 200, reloaded.text
        after = await logprobs(client, LONG, **steering(wants[0]))
        assert after != close(expected[0]), "the new weights, not a prefix or token of the old ones"
        for found, wanted in zip(await asyncio.gather(*running), expected, strict=True):
            assert found == close(wanted)
        assert await logprobs(client, LONG, **steering(wants[0])) == close(after)
        await asyncio.wait_for(old.gone.wait(), 60)
        assert state.hosting.stats().steps > steps, "counters never go back"
    gc.collect()
    assert engine() is None, "somebody still holds the old engine"


async def test_two_families_side_by_side(state: ServerState) -> None:
    async with admin(state) as client:
        assert (await client.get("/v1/admin/status")).json()["available"] == sorted(
            ["first", "second", "tiny", *installed_families()]
        )
        alone = await logprobs(client, model="tiny/base")
        loaded = await client.post("/v1/admin/families", json={"family": "second"})
        assert loaded.status_code == 200 and loaded.json()["name"] == "other"
        assert loaded.json()["kv_bytes"] > 0 and loaded.json()["weights_bytes"] > 0
        ours, theirs = await asyncio.gather(logprobs(client, model="tiny/base"), logprobs(client, model="other/base"))
        assert ours == close(alone) and theirs != close(alone)
        again = await client.post("/v1/admin/families", json={"family": "first"})
        assert again.status_code == 409 and "'tiny' is served already" in again.json()["error"]["message"]
        assert (await client.post("/v1/admin/families/tiny/unload")).status_code == 200
        assert await logprobs(client, model="other/base") == close(theirs)
        assert (await client.post("/v1/admin/families", json={"family": "tiny"})).status_code == 200, "by its own name"
        assert await logprobs(client, model="tiny/base") == close(alone)


async def test_members_come_and_go(state: ServerState) -> None:
    async def methods() -> dict:
        return (await client.get("/v1/families/tiny")).json()["methods"]

    async with admin(state) as client:
        assert (await methods())["rewarded_soup"]["available"]
        before = await logprobs(client, model="tiny/bone_soup@positive=1,simple=1")
        gone = await client.post("/v1/admin/families/tiny/members/only-positive/unload", params={"order": "after"})
        assert gone.status_code == 200 and "only-positive" not in gone.json()["members"]
        assert not (await methods())["rewarded_soup"]["available"]
        assert await logprobs(client, model="tiny/bone_soup@positive=1,simple=1") == close(before)
        refused = await client.post("/v1/admin/families/tiny/members/bone-positive/unload")
        assert refused.status_code == 409 and "backbones" in refused.json()["error"]["message"]
        assert (await client.get("/v1/admin/status")).json()["families"][0]["left_out"] == ["only-positive"]
        back = await client.post("/v1/admin/families/tiny/members/only-positive/load")
        assert back.status_code == 200 and (await methods())["rewarded_soup"]["available"]


async def test_prefixes_are_forgotten(state: ServerState) -> None:
    async def cached() -> int:
        body = {"prompt": TEXT, "max_tokens": 4, "model": "tiny/base"}
        return (await client.post("/v1/generate", json=body)).json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    async with admin(state) as client:
        assert [await cached(), await cached() > 0] == [0, True]
        seen = (await client.get("/v1/admin/caches")).json()["data"][0]["prefix"]
        assert seen["reusable"] > 0 and seen["hits"] > 0 and seen["free"] == seen["blocks"]
        dropped = (await client.post("/v1/admin/caches/reset", json={"caches": ["prefix", "merged"]})).json()
        assert dropped["data"][0]["dropped"] == {"prefix": seen["reusable"], "merged": 0}
        assert (await client.get("/v1/admin/caches")).json()["data"][0]["prefix"]["reusable"] == 0
        assert [await cached(), await cached() > 0] == [0, True]


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
async def pages_taken() -> None:
    """Wait until the pools' memory is all there, which is taken beside everything else."""
    while any(thread.name == "ladle-memory" for thread in threading.enumerate()):
        await asyncio.sleep(0.01)


async def test_memory_is_given_back(folder: Path) -> None:
    """Of a pool that takes far more than all else that a test may leave behind."""
    pool = 384 << 20
    settings = ServerSettings(
        family=str(folder / "first"), families_dir=folder, device="cpu", dtype="float32", kv_memory=pool
    )
    files = FamilyFiles(settings)
    state = ServerState(settings, ApiKeys([ApiKey.of("a", "a", [ADMIN])]), loader=files)
    hosted = files.load(settings.family)
    state.publish(hosted)
    gone = hosted.gone
    del hosted
    async with admin(state) as client:
        await pages_taken()
        full = resident()
        for _ in range(2):
            assert (await client.post("/v1/admin/families/tiny/unload")).status_code == 200
            await asyncio.wait_for(gone.wait(), 60)
            # Not isinstance: some objects of torch warn when they are asked for their class.
            assert not [
                found
                for found in gc.get_objects()
                if type(found) is Engine and "blocks" in vars(found) and found.blocks.total > 10_000
            ]
            assert resident() < full - pool * 3 // 4
            assert (await client.post("/v1/admin/families", json={"family": "tiny"})).status_code == 200
            gone = state.hosting.families["tiny"].gone
            await pages_taken()
            assert resident() < full + pool // 4
    state.hosting.close()


def test_only_what_the_operator_laid_out_has_a_name(settings: ServerSettings, folder: Path) -> None:
    files = FamilyFiles(settings)
    assert files.available() == sorted(["first", "second", *installed_families()])
    for name in ("empty", "..", ".", "../families/first", str(folder / "first"), "first/", "FIRST", "", "first\0"):
        assert files.source_of(name) is None, name
    assert files.source_of("second") == str(folder / "second")


async def test_merges_and_loads_that_fail_again_and_again_are_told_by_ready(
    tmp_path: Path, settings: ServerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_family(tmp_path / "full", "llama", seed=6, name="full", full=["only-positive", "only-simple"])
    files = FamilyFiles(settings.model_copy(update={"family": str(tmp_path / "full"), "families_dir": tmp_path}))
    state = ServerState(settings, ApiKeys([ApiKey.of("a", "a", [ADMIN, GENERATE])]), loader=files)
    state.publish(files.load(str(tmp_path / "full")))
    engine = engine_of(state.hosting.families["full"])
    build = engine.store._build
    weight = iter(index / 100 for index in range(1, 100))

    async def ask(client: httpx.AsyncClient) -> int:
        first = next(weight)
        steering = {"method": "rewarded_soup", "preference": {"positive": first, "simple": 1 - first}}
        return (
            await client.post("/v1/generate", json={"prompt": "x", "max_tokens": 1, "steering": steering})
        ).status_code

    async def ready(client: httpx.AsyncClient) -> tuple[int, str]:
        reply = await client.get("/ready")
        return reply.status_code, reply.text

    def broken(*_: object) -> None:
        raise OSError("the disk is gone")

    try:
        async with admin(state) as client:
            assert await ask(client) == 200 and (await ready(client))[0] == 200
            monkeypatch.setattr(engine.store, "_build", broken)
            assert await ask(client) == 500 and (await ready(client))[0] == 200, "once may be bad luck"
            assert await ask(client) == 500
            status, text = await ready(client)
            assert status == 503 and "full: merging" in text and "OSError: the disk is gone" in text
            assert (await client.get("/health")).status_code == 200
            monkeypatch.setattr(engine.store, "_build", build)
            assert await ask(client) == 200 and (await ready(client))[0] == 200

            monkeypatch.setattr(Engine, "start", broken)
            for expected in (200, 503):
                with pytest.raises(OSError, match="gone"):  # which a server answers with 500
                    await client.post("/v1/admin/families/full/reload")
                status, text = await ready(client)
                assert status == expected
            assert "loading a family failed 2 times" in text and "OSError: the disk is gone" in text
            monkeypatch.undo()
            assert (await client.post("/v1/admin/families/full/reload")).status_code == 200
            assert (await ready(client))[0] == 200
    finally:
        await wait_until(lambda: not state.hosting.retiring, 60)
        state.hosting.close()


async def test_the_forms_in_force_are_said(settings: ServerSettings, caplog: pytest.LogCaptureFixture) -> None:
    """In the log, in a metric, and in the fingerprint: what decides, beside the request, how scores are rounded."""
    prints = {}
    for reproducible in (False, True):
        own = settings.model_copy(update={"reproducible": reproducible})
        state = ServerState(own)
        with caplog.at_level("INFO", logger="ladle"):
            state.publish(FamilyFiles(own).load(own.family))
        assert state.serving is not None
        prints[reproducible] = state.serving.fingerprint
        said = "yes" if reproducible else "no"
        assert (
            "tiny runs on: device cpu, weights float32, activations float32, quantized none, layers gated, "
            f"cuda_graphs off, drafts 0, processes 1, reproducible {said}" in caplog.messages
        )
        async with client_of(state) as client:
            metrics = (await client.get("/metrics")).text
        assert f'reproducible="{said}"' in metrics and 'layers="gated"' in metrics
        state.hosting.close()
    assert prints[False] != prints[True]
