"""What /metrics say of real sequences, against what the answers themselves say."""

import pytest
from asgi import client_of
from fake_engine import FakeEngine, fake_state
from prometheus_client.parser import text_string_to_metric_families

from ladle.merging.family.family import Family
from ladle.server.state import Phase, ServerState

pytestmark = pytest.mark.anyio


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Values by name and labels, buckets left out."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for metric in text_string_to_metric_families(text)
        for sample in metric.samples
        if "le" not in sample.labels
    }


async def test_metrics_of_real_sequences(real_state: ServerState, idle_after: None) -> None:
    """Every part of a sequence's life is timed once, and the parts add up to the whole."""
    assert real_state.serving is not None
    real_state.metrics.watch(real_state.serving.engine.stats)
    body = {"prompt": "Once upon a time", "max_tokens": 6, "n": 3, "logit_bias": {"2": -100, "0": -100}}
    guided = {"method": "bone_soup", "preference": {"positive": 1}, "trace": True}
    async with client_of(real_state) as client:
        answer = await client.post("/v1/generate", json={**body, "steering": guided})
        await client.post("/v1/generate", json={"prompt": "x", "temperature": "hot"})
        await client.get("/nowhere")
        found = samples((await client.get("/metrics")).text)
    assert answer.status_code == 200, answer.text
    for name in ("queue", "prefill", "decode", "inference"):
        assert found[f"ladle_request_{name}_time_seconds_count",] == 3
    total = found["ladle_e2e_request_latency_seconds_sum",]
    inference = found["ladle_request_inference_time_seconds_sum",]
    assert found["ladle_request_queue_time_seconds_sum",] + inference == pytest.approx(total)
    parts = found["ladle_request_prefill_time_seconds_sum",] + found["ladle_request_decode_time_seconds_sum",]
    assert parts == pytest.approx(inference)
    assert found["ladle_request_generation_tokens_sum",] == found["ladle_generation_tokens_total",] == 18
    assert found["ladle_request_time_per_output_token_seconds_count",] == 3
    shifts = [token["shift"] for choice in answer.json()["choices"] for token in choice["tokens"]]
    assert found["ladle_guidance_shift_nats_sum", "bone_soup"] == pytest.approx(sum(shifts))
    assert found["ladle_guidance_shift_nats_count", "bone_soup"] == 18
    assert found["ladle_http_requests_total", "POST", "/v1/generate", "200"] == 1
    assert found["ladle_http_requests_total", "POST", "/v1/generate", "400"] == 1
    assert found["ladle_http_requests_total", "GET", "other", "404"] == 1
    assert found["ladle_http_requests_active",] == 1, "the scrape itself"
    stats = real_state.serving.engine.stats()
    assert found["ladle_step_rows_count",] == found["ladle_engine_steps_total",] == stats.steps
    assert stats.rows_by_step is not None and found["ladle_step_rows_sum",] == stats.rows_by_step.total
    assert found["ladle_process_resident_memory_bytes",] > 1e6


async def test_ready_tells_why_not(family: Family, engine: FakeEngine) -> None:
    state = fake_state(family, engine)
    async with client_of(state) as client:

        async def reason() -> str:
            answer = await client.get("/ready")
            assert (answer.status_code == 200) == (found["ladle_ready",] == 1)
            return "" if answer.status_code == 200 else answer.json()["error"]["message"]

        async def look() -> str:
            found.update(samples((await client.get("/metrics")).text))
            return await reason()

        found: dict[tuple[str, ...], float] = {}
        assert await look() == ""
        state.phase, state.doing = Phase.LOADING, "reading backbone x"
        assert await look() == "not ready: loading: reading backbone x"
        state.phase, state.active, state.drain_until = Phase.DRAINING, 2, 0.0
        assert await look() == "not ready: draining: 2 requests are running, for at most 0 s more"
        state.phase, state.failure = Phase.FAILED, ValueError("/secret/path")
        assert "ValueError" in await look() and "secret" not in await look()
        state.phase, engine.alive = Phase.READY, False
        assert await look() == "not ready: the engine has stopped"
