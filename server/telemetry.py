"""Prometheus metrics, prefix ``ladle_``; names follow vLLM's where they mean the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ladle.server.engine.engine import EngineStats
from ladle.server.engine.request import StepOutput

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5, 5, 10)
_SLOW = (0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 60, 120, 240, 480)
_FIRST = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)


class Metrics:
    """The metrics of one server, in a registry of their own (several servers may live in one process)."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.prompt_tokens = Counter("ladle_prompt_tokens", "Prompt tokens of admitted sequences", registry=registry)
        self.generation_tokens = Counter("ladle_generation_tokens", "Tokens generated", registry=registry)
        self.first_token = Histogram(
            "ladle_time_to_first_token_seconds", "From submission to first token", buckets=_FIRST, registry=registry
        )
        self.inter_token = Histogram(
            "ladle_inter_token_latency_seconds", "Between tokens of a sequence", buckets=_FAST, registry=registry
        )
        self.end_to_end = Histogram(
            "ladle_e2e_request_latency_seconds", "From submission to last token", buckets=_SLOW, registry=registry
        )
        self.success = Counter(
            "ladle_request_success", "Finished sequences by reason", ["finished_reason"], registry=registry
        )
        self.rejections = Counter(
            "ladle_admission_rejections", "Requests refused before they ran", ["reason"], registry=registry
        )
        self.routed = Counter(
            "ladle_routed_tokens", "Tokens by the expert that wrote them", ["expert"], registry=registry
        )
        self.cancelled = Counter("ladle_requests_cancelled", "Sequences given up before their end", registry=registry)

    def watch(self, stats: Callable[[], EngineStats]) -> None:
        """Report an engine's gauges and counters, read at every scrape."""
        self.registry.register(_EngineCollector(stats))

    def render(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)


class SequenceClock:
    """Times one sequence from its submission on."""

    def __init__(self, metrics: Metrics, now: float) -> None:
        self._metrics = metrics
        self._submitted = now
        self._last: float | None = None

    def saw(self, output: StepOutput, now: float) -> None:
        """Account for one output."""
        metrics = self._metrics
        if self._last is None:
            metrics.prompt_tokens.inc(output.prompt_tokens)
            if output.completion_tokens:
                metrics.first_token.observe(now - self._submitted)
        else:
            metrics.inter_token.observe(now - self._last)
        self._last = now
        if output.token >= 0:
            metrics.generation_tokens.inc()
            if output.expert is not None:
                metrics.routed.labels(expert=output.expert).inc()
        if output.finish_reason is not None:
            metrics.end_to_end.observe(now - self._submitted)
            metrics.success.labels(finished_reason=output.finish_reason).inc()


class _EngineCollector(Collector):
    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        used = 1 - stats.blocks_free / stats.blocks_total if stats.blocks_total else 0.0
        gauges = (
            ("num_requests_running", "Sequences that are running", stats.running),
            ("num_requests_waiting", "Sequences that wait", stats.waiting),
            ("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1", used),
            ("distinct_weights_in_batch", "Different weight sets in the last step", stats.distinct_weights),
        )
        counters = (
            ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache", stats.prefix_queries),
            ("prefix_cache_hits", "Prompt tokens found in the prefix cache", stats.prefix_hits),
            ("num_preemptions", "Sequences set back because KV memory ran out", stats.preemptions),
            ("engine_steps", "Steps computed", stats.steps),
        )
        late = "Tokens experts computed late, because the router had not chosen them before"
        catch_up = CounterMetricFamily("ladle_expert_kv_catchup_tokens", late, labels=["expert"])
        for expert, count in stats.catch_up_tokens.items():
            catch_up.add_metric([expert], count)
        yield catch_up
        for name, text, value in gauges:
            yield GaugeMetricFamily(f"ladle_{name}", text, value)
        for name, text, value in counters:
            yield CounterMetricFamily(f"ladle_{name}", text, value)
