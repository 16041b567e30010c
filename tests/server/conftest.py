"""A tiny family for all tests of the server, and the double of its engine."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from fake_engine import FakeEngine
from tiny_models import write_family

from ladle.merging.family.family import Family, load_family
from ladle.server.app import build_app
from ladle.server.engine.async_engine import AsyncEngine
from ladle.server.engine.engine import Engine
from ladle.server.engine.engine_config import EngineConfig
from ladle.server.run import listen, url_of
from ladle.server.serving import Serving
from ladle.server.settings import ServerSettings
from ladle.server.state import ServerState

PRESETS = """
[presets.cheerful]
method = "bone_soup"
preference = { positive = 1.0 }
[presets.plain]
method = "base"
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("family"), "llama", seed=5, extra=PRESETS)


@pytest.fixture(scope="session")
def family(family_folder: Path) -> Family:
    return load_family(family_folder)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="session")
def real_engine(family: Family) -> Iterator[Engine]:
    """A started engine over the tiny family; whoever uses it must leave it idle."""
    config = EngineConfig(device="cpu", dtype="float32", max_sequences=20, max_batch_tokens=256, kv_memory=4 << 20)
    engine = Engine(family, config)
    engine.start()
    yield engine
    engine.shutdown()


@pytest.fixture
def real_state(family: Family, real_engine: Engine) -> ServerState:
    state = ServerState(ServerSettings())
    state.publish(Serving.of(family, AsyncEngine(real_engine), real_engine.vocabulary))
    return state


@pytest.fixture
def live_url(real_state: ServerState) -> Iterator[str]:
    """A real web server on the loopback interface over the real engine."""
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(build_app(real_state), log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield url_of(listener)
    server.should_exit = True
    thread.join(10)


def wait_idle(engine: Engine, seconds: float = 60) -> None:
    """Wait until nothing runs, then check that nothing is held."""
    until = time.monotonic() + seconds
    while (stats := engine.stats()).running or stats.waiting or stats.blocks_free != stats.blocks_total:
        assert time.monotonic() < until, stats
        time.sleep(0.005)
    assert stats.lanes_free == engine.config.lanes


@pytest.fixture
def idle_after(real_engine: Engine) -> Iterator[None]:
    """All blocks and lanes are free when the test is over."""
    yield
    wait_idle(real_engine)
