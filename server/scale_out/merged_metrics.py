"""The metrics of several processes as one text: every sample says whose it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector


class _Given(Collector):
    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterator[Metric]:
        yield from self._metrics


def merged(pages: Iterable[tuple[str, bytes]]) -> bytes:
    """Prometheus' text format of ``found``, (whose, text in that format), with a label ``replica``."""
    families: dict[str, Metric] = {}
    for replica, text in pages:
        for metric in text_string_to_metric_families(text.decode()):
            family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            for sample in metric.samples:
                labels = {**sample.labels, "replica": replica}
                family.samples.append(sample._replace(labels=labels))
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Given(families.values()))
    return generate_latest(registry)
