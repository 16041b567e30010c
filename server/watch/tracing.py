"""OpenTelemetry traces, where an exporter is configured: one span a request, one for what it generates, and one for
each part of that. The extra ``[otel]`` brings the packages; without it nothing here imports them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from ladle.merging.exceptions import InputError
from ladle.server.watch.request_context import RequestContext

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span

# Where the SDK itself looks for the exporter's address.
_ENVIRONMENT = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
# https://opentelemetry.io/docs/specs/semconv/gen-ai/ ; what has no name there is called ladle.*
_NAMES = {
    "family": "gen_ai.request.model",
    "max_tokens": "gen_ai.request.max_tokens",
    "sequences": "gen_ai.request.choice.count",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "cached_tokens": "gen_ai.usage.cache_read.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "finish_reasons": "gen_ai.response.finish_reasons",
    "first_token_seconds": "gen_ai.response.time_to_first_chunk",
}


class RequestSpan:
    """The span of one HTTP request; this one is of none."""

    def end_of_request(self, method: str, path: str, status: int, context: RequestContext) -> None:
        """Its answer has ended; ``path``: the route's template."""


class Tracing:
    """Traces nothing."""

    @contextmanager
    def request(self, method: str, headers: Mapping[str, str]) -> Iterator[RequestSpan]:
        """A request is at work; ``headers`` may say which trace it belongs to (W3C ``traceparent``)."""
        yield RequestSpan()

    def job(self, facts: Mapping[str, Any], start: float, parts: Sequence[tuple[str, float, float]]) -> None:
        """Something was generated from ``start`` (of ``time.monotonic``) until now, in ``parts`` (name, start, end)."""

    def close(self) -> None:
        """Send what is left."""


def configured(endpoint: str | None) -> Tracing:
    """Traces to ``endpoint`` (OTLP over HTTP, the whole URL), or to where OpenTelemetry's own variables say; none where
    neither says anything.

    Raises:
        InputError: an exporter is configured, and the packages that it needs are not installed.
    """
    address = endpoint or next((value for name in _ENVIRONMENT if (value := os.environ.get(name))), None)
    if address is None or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return Tracing()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        reason = "the packages for it are not installed: pip install 'ladle[otel]'"
        raise InputError("otlp_traces_endpoint", address, reason=reason) from None
    return OtelTracing(OTLPSpanExporter(endpoint=endpoint))


class OtelTracing(Tracing):
    """Traces to ``exporter``; ``at_once``: every span when it ends, instead of many now and then."""

    def __init__(self, exporter: SpanExporter, at_once: bool = False) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor

        about = {"service.version": version("ladle")}
        if "OTEL_SERVICE_NAME" not in os.environ:
            about["service.name"] = "ladle"
        # A provider of our own, and not the global one: several servers may live in one process.
        self._provider: TracerProvider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
        self._provider.add_span_processor(SimpleSpanProcessor(exporter) if at_once else BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("ladle.server", version("ladle"))

    @contextmanager
    def request(self, method: str, headers: Mapping[str, str]) -> Iterator[RequestSpan]:
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        parent = TraceContextTextMapPropagator().extract(headers)
        # An exception's message may quote the request, so it is not recorded.
        with self._tracer.start_as_current_span(
            method, parent, SpanKind.SERVER, record_exception=False, set_status_on_exception=False
        ) as span:
            yield _OtelRequestSpan(span)

    def job(self, facts: Mapping[str, Any], start: float, parts: Sequence[tuple[str, float, float]]) -> None:
        from opentelemetry.trace import set_span_in_context

        # Spans are dated by the wall clock, what is timed by one that never jumps.
        offset = time.time() - time.monotonic()

        def nanoseconds(moment: float) -> int:
            return int((moment + offset) * 1e9)

        whole = self._tracer.start_span("generate", start_time=nanoseconds(start), attributes=_attributes(facts))
        inside = set_span_in_context(whole)
        for name, begin, end in parts:
            self._tracer.start_span(name, inside, start_time=nanoseconds(begin)).end(nanoseconds(end))
        whole.end()

    def close(self) -> None:
        self._provider.shutdown()


class _OtelRequestSpan(RequestSpan):
    def __init__(self, span: Span) -> None:
        self._span = span

    def end_of_request(self, method: str, path: str, status: int, context: RequestContext) -> None:
        from opentelemetry.trace import StatusCode

        self._span.update_name(f"{method} {path}")
        self._span.set_attributes(
            {
                "http.request.method": method,
                "http.route": path,
                "http.response.status_code": status,
                "ladle.request_id": context.id,
            }
        )
        if status >= 500:
            self._span.set_status(StatusCode.ERROR)


def _attributes(facts: Mapping[str, Any]) -> dict[str, Any]:
    attributes: dict[str, Any] = {"gen_ai.operation.name": "text_completion", "gen_ai.provider.name": "ladle"}
    for name, value in facts.items():
        if value is None:
            continue
        if isinstance(value, dict):
            value = json.dumps(value)
        elif isinstance(value, list):
            value = [str(entry) for entry in value]
        attributes[_NAMES.get(name, f"ladle.{name}")] = value
    return attributes
