"""Prometheus metrics, prefix ``ladle_``; names follow vLLM's where they mean the same."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest

from ladle.server.engine.requests.request import StepOutput
from ladle.server.engine.stats.stats import EngineStats
from ladle.server.watch.engine_metrics import EngineCollector
from ladle.server.watch.sequence_times import SequenceTimes

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5, 10)
_SLOW = (0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 60, 120, 240, 480)
_FIRST = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_LAG = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
_NATS = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16)
_REASONS = ("stop", "length", "content_filter", "abort", "error")


class Metrics:
    """The metrics of one server, in a registry of their own (several servers may live in one process)."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def histogram(name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
            return Histogram(f"ladle_{name}", text, labels, buckets=buckets, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"ladle_{name}", text, labels, registry=registry)

        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of admitted sequences")
        self.generation_tokens = counter("generation_tokens", "Tokens generated")
        self.first_token = histogram("time_to_first_token_seconds", "From submission to first token", _FIRST)
        self.inter_token = histogram("inter_token_latency_seconds", "Between tokens of a sequence", _FAST)
        self.per_token = histogram(
            "request_time_per_output_token_seconds", "Mean time between the tokens of a finished sequence", _FAST
        )
        self.end_to_end = histogram("e2e_request_latency_seconds", "From submission to last token", _SLOW)
        self.queue = histogram("request_queue_time_seconds", "From submission to the first step", _SLOW)
        self.prefill = histogram("request_prefill_time_seconds", "From the first step to the first token", _SLOW)
        self.decode = histogram("request_decode_time_seconds", "From the first token to the last", _SLOW)
        self.inference = histogram("request_inference_time_seconds", "From the first step to the last token", _SLOW)
        self.prompt_length = histogram("request_prompt_tokens", "Prompt tokens of a finished sequence", _TOKENS)
        self.answer_length = histogram("request_generation_tokens", "Tokens of a finished sequence", _TOKENS)
        self.success = counter("request_success", "Finished sequences by reason", "finished_reason")
        self.rejections = counter("admission_rejections", "Requests refused before they ran", "reason")
        self.routed = counter("routed_tokens", "Tokens by the expert that wrote them", "expert")
        self.steering_changes = counter(
            "steering_changes",
            "Parts of answers that began under another plan, by a schedule or a request on the way",
            "by",
        )
        self.scored = counter("scored_answers", "Answers that a ranking judged", "by")
        self.search_blocks = counter("search_blocks", "Blocks of answers that a search chose", "by")
        self.search_draws = counter("search_draws", "Continuations that searches drew, kept or not", "by")
        self.search_tokens = counter("search_drawn_tokens", "Tokens of these continuations", "by")
        self.trips = counter("monitor_trips", "Answers that a monitor ended", "monitor")
        self.thought_checks = counter("thought_checks", "Times that a verifier was asked about a thought")
        self.thoughts_cut = counter("thoughts_cut", "Thoughts that a verifier ended")
        self.cancelled = counter("requests_cancelled", "Sequences given up before their end")
        self.shift = histogram(
            "guidance_shift_nats", "KL(base, final) of traced tokens by method", _NATS, labels=("method",)
        )
        self.http_requests = counter("http_requests", "Answers by path and status", "method", "path", "status")
        self.http_seconds = histogram(
            "http_request_duration_seconds", "From the request to the end of its answer", _SLOW, labels=("path",)
        )
        self.loop_lag = histogram("event_loop_lag_seconds", "How much later than due the event loop came round", _LAG)
        self.active = Gauge("ladle_http_requests_active", "Requests whose answer has not ended", registry=registry)
        self.ready = Gauge("ladle_ready", "1 while the server can take work", registry=registry)
        self.server = Info("ladle_server", "What is served", registry=registry)
        self.server.info({"version": version("ladle")})
        ProcessCollector("ladle", registry=registry)
        for reason in _REASONS:
            self.success.labels(finished_reason=reason)
        self.rejections.labels(reason="queue_full")
        for by in ("schedule", "request"):
            self.steering_changes.labels(by=by)

    def watch(self, stats: Callable[[], EngineStats]) -> None:
        """Report an engine's gauges and counters, read at every scrape."""
        self.registry.register(EngineCollector(stats))

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)


class SequenceClock:
    """Times one sequence of a request steered by ``method``, which may change, from its submission at ``now`` on."""

    def __init__(self, metrics: Metrics, now: float, method: str) -> None:
        self._metrics = metrics
        self.method = method
        self.times = SequenceTimes(now)

    def saw(self, output: StepOutput, now: float) -> None:
        """Account for one output."""
        metrics, last = self._metrics, self.times.last
        self.times.saw(output, now)
        if last is None:
            metrics.prompt_tokens.inc(output.prompt_tokens)
            if output.completion_tokens:
                metrics.first_token.observe(now - self.times.submitted)
        else:
            metrics.inter_token.observe(now - last)
        if output.token >= 0:
            metrics.generation_tokens.inc()
            if output.expert is not None:
                metrics.routed.labels(expert=output.expert).inc()
            if output.shift is not None:
                metrics.shift.labels(method=self.method).observe(output.shift)
        if output.checked is not None:
            metrics.thought_checks.inc()
            metrics.thoughts_cut.inc(output.checked.ends)
        if output.finish_reason is not None:
            self._finished(output, now)

    def _finished(self, output: StepOutput, now: float) -> None:
        metrics, times = self._metrics, self.times
        metrics.end_to_end.observe(now - times.submitted)
        metrics.success.labels(finished_reason=output.finish_reason).inc()
        metrics.prompt_length.observe(output.prompt_tokens)
        metrics.answer_length.observe(output.completion_tokens)
        if output.tripped is not None:
            metrics.trips.labels(monitor=output.tripped.monitor).inc()
        if output.score is not None:
            metrics.scored.labels(by=output.score.by).inc()
        if times.started is not None:
            metrics.queue.observe(times.started - times.submitted)
            metrics.inference.observe(now - times.started)
            if times.first is not None:
                metrics.prefill.observe(max(0.0, times.first - times.started))
        if times.first is not None:
            metrics.decode.observe(now - times.first)
            if output.completion_tokens > 1:
                metrics.per_token.observe((now - times.first) / (output.completion_tokens - 1))
