"""``ladle serve --ray``: two replicas on this machine, one of them killed while both work.

Not part of the ordinary suite: Ray is large, and so is the minute that this takes. ``make ray`` runs it.
"""

import asyncio
import importlib.util
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from seeds import fresh_seed
from server_process import Server, serve_family
from tiny_models import write_family

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None or "LADLE_RAY" not in os.environ, reason="make ray runs it"
    ),
]
CONTEXT = 4096
ENDS_S = 300  # Ray's own processes have to end as well
ENDLESS = {"logit_bias": {"2": -100, "0": -100}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = write_family(tmp_path_factory.mktemp("ray"), "llama", seed=7, max_position_embeddings=CONTEXT)
    with serve_family(folder, "--kv-memory", "48MiB", "--ray", "--replicas", "2", "--replica-cpus", "0.5") as running:
        yield running
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(ENDS_S) == 0


@pytest.fixture
async def client(server: Server) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=200)
    headers = {"authorization": f"Bearer {server.key}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=300, limits=limits) as client:
        yield client


async def working(client: httpx.AsyncClient) -> dict[int, float]:
    """Sequences that run, by the process of the replica."""
    text = (await client.get("/metrics")).text
    return {
        int(sample.labels["replica"].rpartition("-")[2]): sample.value
        for metric in text_string_to_metric_families(text)
        for sample in metric.samples
        if sample.name == "ladle_num_requests_running"
    }


async def looks(client: httpx.AsyncClient, most: int) -> AsyncIterator[dict[int, float]]:
    """What works, looked at ``most`` times at most, a tenth of a second between two. A look takes longer where the
    machine has other things to do, and so does what is waited for: what is told is that it never comes."""
    for _ in range(most):
        yield (found := await working(client))
        await asyncio.sleep(0.1)
    raise AssertionError(f"looked {most} times; at last there was {found}")


async def wait_for(client: httpx.AsyncClient, condition: Any, most: int = 3000) -> dict[int, float]:
    async for found in looks(client, most):
        if condition(found):
            return found
    raise AssertionError("cannot be reached")


async def whole(client: httpx.AsyncClient, number: int, seed: int) -> list[int]:
    body = {"prompt": f"{number} times", "max_tokens": 300, "seed": seed + number, "logprobs": True, **ENDLESS}
    answer = await client.post("/v1/generate", json=body)
    assert answer.status_code == 200, answer.text
    return [token["id"] for token in answer.json()["choices"][0]["tokens"]]


async def streamed(client: httpx.AsyncClient, number: int, tokens: int = 1500) -> tuple[int, Any]:
    """How many tokens came of a stream of ``tokens``, and its last event."""
    body = {"prompt": f"{number} streams", "max_tokens": tokens, "stream": True, **ENDLESS}
    last: Any = None
    count = 0
    async with client.stream("POST", "/v1/generate", json=body) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                data = line.removeprefix("data: ")
                last = data if data == "[DONE]" else json.loads(data)
                count += "token" in last
    return count, last


async def test_a_replica_that_is_killed_loses_no_answer(client: httpx.AsyncClient) -> None:
    """Streams end with what says so; everything else is answered, and as it would have been alone."""
    seed = fresh_seed()
    alone = [await whole(client, number, seed) for number in range(6)]
    await wait_for(client, lambda found: len(found) == 2)
    streams = [asyncio.create_task(streamed(client, number)) for number in range(6)]
    # Which replica gets a request is left to chance; go on until both have work.
    async for found in looks(client, 60):
        if all(found.values()):
            break
        streams.append(asyncio.create_task(streamed(client, len(streams))))
    answers = [asyncio.create_task(whole(client, number % 6, seed)) for number in range(24)]
    found = await wait_for(client, lambda found: len(found) == 2 and all(found.values()) and sum(found.values()) > 8)
    victim = min(found)
    os.kill(victim, signal.SIGKILL)
    for number, tokens in enumerate(await asyncio.gather(*answers)):
        assert tokens == alone[number % 6]
    cut = 0
    for count, last in await asyncio.gather(*streams):
        if last == "[DONE]":
            assert count == 1500
        else:
            assert last["error"]["code"] == "replica_lost" and count < 1500
            cut += 1
    assert cut, "the one that was killed had streams"
    after = await wait_for(client, lambda found: len(found) == 2 and victim not in found)
    assert not any(after.values()), "nothing runs on for clients that are gone"


async def test_replicas_are_replaced_without_losing_anything(server: Server, client: httpx.AsyncClient) -> None:
    seed = fresh_seed()
    before = set(await wait_for(client, lambda found: len(found) == 2))
    alone = await whole(client, 1, seed)
    server.process.send_signal(signal.SIGHUP)
    asked = 0
    async for found in looks(client, 1000):
        if len(found) == 2 and not set(found) & before:
            break
        answers = await asyncio.gather(*(whole(client, 1, seed) for _ in range(3)))
        assert answers == [alone] * 3
        asked += 3
    assert asked and (await client.get("/ready")).status_code == 200


async def test_a_client_that_leaves_is_noticed_by_the_replica(client: httpx.AsyncClient) -> None:
    task = asyncio.create_task(streamed(client, 1))
    await wait_for(client, lambda found: sum(found.values()) == 1)
    task.cancel()
    await wait_for(client, lambda found: not any(found.values()), 300)


async def test_requests_go_where_their_prefix_is_known(client: httpx.AsyncClient) -> None:
    """Of twenty turns of one conversation all but the first find its beginning in a cache."""
    text = f"{fresh_seed()} " + "Once upon a time there was a tiny model. " * 8
    cached = []
    for turn in range(20):
        body = {"prompt": text + "x" * turn, "max_tokens": 1}
        answer = (await client.post("/v1/generate", json=body)).json()
        cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert all(cached[1:]), cached


async def test_replicas_are_added_while_requests_queue(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = write_family(tmp_path_factory.mktemp("scaled"), "llama", seed=8, max_position_embeddings=CONTEXT)
    options = ("--kv-memory", "48MiB", "--ray", "--max-replicas", "2", "--replica-cpus", "0.5", "--max-sequences", "2")
    with serve_family(folder, *options) as running:
        headers = {"authorization": f"Bearer {running.key}"}
        async with httpx.AsyncClient(base_url=running.url, headers=headers, timeout=300) as client:
            await wait_for(client, lambda found: len(found) == 1)
            ended = asyncio.Event()

            async def keep_busy(number: int) -> None:
                while not ended.is_set():
                    await streamed(client, number, 300)

            tasks = [asyncio.create_task(keep_busy(number)) for number in range(8)]
            await wait_for(client, lambda found: len(found) == 2)
            await wait_for(client, lambda found: all(found.values()))
            ended.set()
            assert len(await asyncio.gather(*tasks)) == 8
        running.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(running.process.wait, ENDS_S) == 0
