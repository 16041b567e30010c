"""OpenTelemetry traces: what is exported, whose trace it belongs to, and that they say nothing of what was asked."""

import importlib.util
import sys

import pytest
from asgi import client_of
from fake_engine import FakeEngine, fake_state

from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family
from ladle.server.watch import tracing
from ladle.server.watch.tracing import OtelTracing, Tracing, configured

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(importlib.util.find_spec("opentelemetry.sdk") is None, reason="needs the extra [otel]"),
]
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize("stream", [False, True])
async def test_spans_of_a_request(family: Family, engine: FakeEngine, stream: bool) -> None:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    state = fake_state(family, engine)
    state.tracing = OtelTracing(exporter, at_once=True)
    body = {"prompt": "rosebud", "max_tokens": 4, "n": 2, "stream": stream, "model": "tiny/bone_soup@positive=1"}
    async with client_of(state) as client:
        answer = await client.post("/v1/completions", json=body, headers={"traceparent": PARENT})
        await client.get("/v1/models")
    assert answer.status_code == 200
    spans = exporter.get_finished_spans()
    by_name = {span.name: span for span in spans}
    request, whole = by_name["POST /v1/completions"], by_name["generate"]
    assert format(request.context.trace_id, "032x") == PARENT.split("-")[1]
    assert request.parent is not None and format(request.parent.span_id, "016x") == PARENT.split("-")[2]
    assert whole.parent is not None and whole.parent.span_id == request.context.span_id
    assert request.attributes is not None and whole.attributes is not None
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["ladle.request_id"] == answer.headers["x-request-id"]
    assert whole.attributes["gen_ai.usage.output_tokens"] == 8
    assert whole.attributes["gen_ai.response.finish_reasons"] == ("length", "length")
    assert whole.attributes["ladle.steering"] == "bone_soup"
    parts = [span for span in spans if span.name in ("queue", "prefill", "decode")]
    assert len(parts) >= 2 and all(part.parent.span_id == whole.context.span_id for part in parts)  # type: ignore[union-attr]
    for span in (*parts, whole):
        assert span.end_time is not None and span.start_time is not None and span.end_time >= span.start_time
    assert by_name["GET /v1/models"].parent is None
    assert "rosebud" not in "".join(span.to_json() for span in spans)


async def test_a_failure_is_an_error_without_a_message(
    family: Family, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("rosebud")

    exporter = InMemorySpanExporter()
    state = fake_state(family, engine)
    state.tracing = OtelTracing(exporter, at_once=True)
    monkeypatch.setattr("ladle.server.routes.models.model_ids", broken)
    async with client_of(state, raise_app_exceptions=False) as client:
        assert (await client.get("/v1/models")).status_code == 500
    (span,) = exporter.get_finished_spans()
    assert not span.status.is_ok and "rosebud" not in span.to_json()


def test_without_an_exporter_there_are_no_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tracing._ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    assert type(configured(None)) is Tracing
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    found = configured(None)
    assert isinstance(found, OtelTracing)
    found.close()
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert type(configured(None)) is Tracing


def test_an_exporter_without_its_packages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(InputError, match=r"otlp_traces_endpoint.*ladle\[otel\]"):
        configured("http://127.0.0.1:9/v1/traces")
