"""A quick start: answers before loops are compiled, and the change to them."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from asgi import client_of, wait_until
from fake_loader import FakeLoader
from tiny_models import write_family

from ladle.kernels import dispatch
from ladle.merging.bank.gated_layers import GatedLinear
from ladle.merging.family.family import Family
from ladle.server.admin.change_over import change_over
from ladle.server.admin.loading import FamilyFiles
from ladle.server.engine.async_engine import AsyncEngine
from ladle.server.engine.device import early_code
from ladle.server.hosting import Hosted
from ladle.server.settings import ServerSettings
from ladle.server.state import Phase, ServerState

pytestmark = pytest.mark.anyio


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Loops are being compiled until the event is set."""
    event = threading.Event()
    monkeypatch.setattr(early_code, "compiling", lambda: not event.is_set())
    monkeypatch.setattr(early_code, "await_all", event.wait)
    yield event
    event.set()


def hosted_quickly(loader: FakeLoader, *names: str) -> ServerState:
    state = ServerState(ServerSettings(), None, loader=loader)
    for name in names:
        hosted = loader.load(name)
        hosted.provisional = True
        state.publish(hosted)
    return state


async def test_every_family_changes_over(family: Family, compiled: threading.Event) -> None:
    loader = FakeLoader(family, "one", "two", "three")
    state = hosted_quickly(loader, "one", "two")
    state.publish(loader.load("three"))
    before = dict(state.hosting.families)
    task = asyncio.create_task(change_over(state))
    state.hosting.changing = "loading something else"
    await asyncio.sleep(0.05)
    assert state.hosting.families == before
    compiled.set()
    await asyncio.sleep(0.05)
    assert state.hosting.families == before, "one change at a time"
    state.hosting.changing = None
    await asyncio.wait_for(task, 20)
    after = state.hosting.families
    assert list(after) == ["one", "two", "three"] and after["three"] is before["three"]
    assert not any(hosted.provisional for hosted in after.values())
    await wait_until(lambda: before["one"].gone.is_set() and before["two"].gone.is_set())


async def test_what_cannot_be_loaded_twice_goes_on(
    family: Family, compiled: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    loader = FakeLoader(family, "one", "two")
    state = hosted_quickly(loader, "one", "two")
    one, two = state.hosting.families.values()
    loader.broken.add("one")
    compiled.set()
    await asyncio.wait_for(change_over(state), 20)
    assert state.hosting.families["one"] is one and one.provisional and state.hosting.families["two"] is not two
    assert "one goes on without compiled loops: nothing was loaded" in caplog.text
    assert state.phase is Phase.READY and state.unready() is None


async def test_a_server_that_ends_loads_nothing(family: Family, compiled: threading.Event) -> None:
    loader = FakeLoader(family, "one")
    state = hosted_quickly(loader, "one")
    state.phase = Phase.DRAINING
    compiled.set()
    await asyncio.wait_for(change_over(state), 20)
    assert len(loader.loaded) == 1


def tiled(hosted: Hosted) -> set[bool]:
    engine = hosted.live.engine
    assert isinstance(engine, AsyncEngine)
    model = engine.engine.models.base.model
    return {module.group.tiled is not None for module in model.modules() if isinstance(module, GatedLinear)}


@pytest.mark.skipif(not dispatch.can_compile(), reason="numba is not there")
async def test_real_engines_change_over(tmp_path: Path, compiled: threading.Event) -> None:
    """Without loops first, with them after: about the same scores, another fingerprint, and who began before the
    change ends as it would have."""
    write_family(tmp_path / "family", "llama", seed=3, name="tiny", max_position_embeddings=1024)
    common: dict[str, Any] = {"device": "cpu", "dtype": "bfloat16", "kv_memory": 4 << 20}
    settings = ServerSettings(family=str(tmp_path / "family"), quick_start=True, **common)
    files = FamilyFiles(settings)
    state = ServerState(settings, None, loader=files)
    state.publish(files.load(settings.family))
    quick = state.hosting.families["tiny"]
    assert quick.provisional and tiled(quick) == {False} and quick.live.form["layers"] == "gated"
    body: dict[str, Any] = {"prompt": "The rain in Spain", "temperature": 0, "max_tokens": 1, "logprobs": True}

    async def answer(**fields: object) -> tuple[list[float], str]:
        reply = await client.post("/v1/completions", json={**body, **fields, "model": "tiny", "logprobs": 1})
        assert reply.status_code == 200, reply.text
        said = reply.json()
        return said["choices"][0]["logprobs"]["token_logprobs"], said["system_fingerprint"]

    async with client_of(state) as client:
        (before, first), (long, _) = await answer(), await answer(max_tokens=200, ignore_eos=True)
        running = asyncio.create_task(answer(max_tokens=200, ignore_eos=True))
        await wait_until(lambda: quick.users or running.done(), 60)
        task = asyncio.create_task(change_over(state))
        compiled.set()
        await asyncio.wait_for(task, 120)
        again, fingerprint = await running
        assert again == long and fingerprint == first
        after, last = await answer()
    now = state.hosting.families["tiny"]
    plain = FamilyFiles(ServerSettings(family=settings.family, **common)).load(settings.family)
    assert not now.provisional and now.live.form == plain.live.form and tiled(now) == tiled(plain)
    assert (last == first) == (now.live.form == quick.live.form)
    assert after == pytest.approx(before, abs=0.05)
    await wait_until(lambda: not state.hosting.retiring, 60)
    state.hosting.close()
    assert plain.engine_admin is not None
    plain.engine_admin.close()
    plain.live.grammars.close()
