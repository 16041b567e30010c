"""An engine's figures as Prometheus metrics, read when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from ladle.server.engine.stats.stats import EngineStats
from ladle.server.engine.stats.step_counts import Distribution


class EngineCollector(Collector):
    """What ``stats`` says at every scrape."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        merges = stats.merges
        used = 1 - stats.blocks_free / stats.blocks_total if stats.blocks_total else 0.0
        gauges = (
            ("num_requests_running", "Sequences that are running", stats.running),
            ("num_requests_waiting", "Sequences that wait", stats.waiting),
            ("kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1", used),
            ("lanes_free", "KV lanes that no source holds", stats.lanes_free),
            ("distinct_weights_in_batch", "Different weight sets in the last step", stats.distinct_weights),
            ("distinct_preferences_in_batch", "Different wishes in the last step", stats.distinct_preferences),
            ("merge_cache_usage_bytes", "Memory of merged full-weight members", merges.used),
            ("merge_cache_limit_bytes", "Memory that they may take", merges.budget),
        )
        counters = (
            ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache", stats.prefix_queries),
            ("prefix_cache_hits", "Prompt tokens found in the prefix cache", stats.prefix_hits),
            ("draft_model_seconds", "Time that the draft model took", stats.guess_seconds),
            ("num_preemptions", "Sequences set back because KV memory ran out", stats.preemptions),
            ("engine_steps", "Steps computed", stats.steps),
            ("integrity_checks", "Times the bookkeeping was looked over while idle", stats.integrity_checks),
            ("merge_cache_hits", "Merged sets that were there when a sequence needed them", merges.hits),
            ("merge_cache_misses", "Merged sets that had to be merged first", merges.misses),
            ("merge_cache_evictions", "Merged sets dropped for others", merges.evictions),
            ("merge_failures", "Merges that failed", merges.failures),
        )
        late = "Tokens experts computed late, because the router had not chosen them before"
        yield _counts("expert_kv_catchup_tokens", late, "expert", stats.catch_up_tokens)
        yield _counts("drafted_tokens", "Tokens computed before they were drawn", "by", stats.drafted_tokens)
        yield _counts("accepted_tokens", "Drafted tokens that were then drawn", "by", stats.accepted_tokens)
        for name, text, value in gauges:
            yield GaugeMetricFamily(f"ladle_{name}", text, value)
        for name, text, value in counters:
            yield CounterMetricFamily(f"ladle_{name}", text, value)
        yield _histogram("step_rows", "Rows (tokens of all lanes, candidates) of a step", stats.rows_by_step)
        yield _histogram("step_seconds", "Duration of a step", stats.step_seconds)
        yield _histogram("step_preferences", "Different wishes in a step", stats.preferences)
        yield _histogram("merge_seconds", "Duration of a merge of full-weight members", merges.seconds)


def _counts(name: str, text: str, label: str, counts: Mapping[str, int]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"ladle_{name}", text, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family


def _histogram(name: str, text: str, seen: Distribution | None) -> HistogramMetricFamily:
    family = HistogramMetricFamily(f"ladle_{name}", text)
    if seen is not None:
        bounds = [*map(floatToGoString, seen.bounds), "+Inf"]
        family.add_metric([], list(zip(bounds, accumulate(seen.counts), strict=True)), seen.total)
    return family
