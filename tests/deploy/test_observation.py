"""The dashboard and the alerts ask for metrics and labels that a server has, in queries that Prometheus understands."""

import json
import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client.core import Metric

from ladle.server.engine.stats.stats import EngineStats, MergeStats
from ladle.server.engine.stats.step_counts import Tally
from ladle.server.watch.telemetry import Metrics

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text())
ALERTS = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
# What Prometheus itself adds.
ADDED = {"instance", "job"}
ENDINGS = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "info": ("_info",),
}


def queries() -> list[Any]:
    found = [
        pytest.param(target["expr"], id=f"{panel['title']} {target['refId']}")
        for panel in PANELS
        for target in panel["targets"]
    ]
    rules = [rule for group in ALERTS["groups"] for rule in group["rules"]]
    return found + [pytest.param(rule["expr"], id=rule["alert"]) for rule in rules]


@pytest.fixture(scope="module")
def known() -> dict[str, set[str]]:
    """Labels by the name of every series that a server may have."""
    metrics = Metrics()
    metrics.watch(
        lambda: EngineStats(
            0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, {"math": 1}, 0, MergeStats(seconds=Tally([1]).seen()),
            Tally([1]).seen(), Tally([1]).seen(), Tally([1]).seen(),
        )
    )  # fmt: skip
    labels = {
        collector._name: set(collector._labelnames)  # type: ignore[attr-defined]
        for collector in metrics.registry._collector_to_names
        if hasattr(collector, "_labelnames")
    }
    series: dict[str, set[str]] = {}
    for metric in metrics.registry.collect():
        own = labels.get(metric.name, set()) | _seen(metric)
        for ending in ENDINGS[metric.type]:
            series[metric.name + ending] = own | ({"le"} if ending == "_bucket" else set()) | ADDED
    return series


def _seen(metric: Metric) -> set[str]:
    return {name for sample in metric.samples for name in sample.labels} - {"le"}


@pytest.mark.parametrize("query", queries())
def test_queries_ask_for_what_there_is(query: str, known: dict[str, set[str]]) -> None:
    promql_parser.parse(query.replace("$__rate_interval", "5m"))
    selected = re.findall(r"\b(ladle_\w+|up)\b(?:\{([^}]*)\})?", query)
    assert selected
    labels = set(re.findall(r"(\w+)\s*=", ",".join(inside for _, inside in selected)))
    for group in re.findall(r"\bby \(([^)]*)\)", query):
        labels |= {name.strip() for name in group.split(",")}
    for name, _ in selected:
        assert name in known or name == "up", name
        assert labels <= known.get(name, ADDED), (name, labels - known.get(name, ADDED))


def test_every_metric_of_ours_is_in_the_handbook(known: dict[str, set[str]]) -> None:
    named = set(re.findall(r"`(\w+?)(?:_total)?(?:\{[^}]*\})?`", (ROOT / "docs/operating.md").read_text()))
    ours = {re.sub(r"_(total|bucket|sum|count|info)$", "", name) for name in known if "_process_" not in name}
    missing = {name.removeprefix("ladle_") for name in ours} - named - {"server"}
    assert not missing, f"docs/operating.md does not say what {', '.join(sorted(missing))} mean"


def test_panels_lie_beside_each_other() -> None:
    cells: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        own = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not own & cells and max(x for x, _ in own) < 24, panel["title"]
        cells |= own
    for panel in PANELS:
        assert panel["datasource"]["uid"] == "${datasource}" and panel["title"] and panel["targets"]
        assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])


def test_alerts_say_what_is_wrong() -> None:
    rules = [rule for group in ALERTS["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["annotations"]["summary"] and rule["labels"]["severity"] in ("critical", "warning")
        # A summary may only name labels that the query leaves.
        for label in re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])):
            grouped = re.findall(r"\bby \(([^)]*)\)", rule["expr"])
            assert not grouped or label in grouped[-1]


def test_the_handbook_names_what_there_is(known: dict[str, set[str]]) -> None:
    text = (ROOT / "docs/operating.md").read_text()
    table = text.partition("## Metrics")[2].partition("## Logs")[0]
    named = [
        word
        for word in re.findall(r"`([a-z_]+)(?:\{[^}]*\})?`", table)
        if "_" in word and word not in ("ladle_", "min_stay")
    ]
    assert len(named) > 30
    for name in named:
        endings = ("", "_bucket", "_info") if name != "server_info" else ("",)
        assert any(f"ladle_{name}{ending}" in known for ending in endings), name
