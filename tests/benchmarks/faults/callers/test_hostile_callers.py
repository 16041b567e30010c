"""Small versions of the runs in which one caller means harm; the full ones are ``ladle bench faults``."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prepared_process import PREPARED
from seeds import fresh_seed

from ladle.benchmarks.faults.callers import (
    descriptors,
    event_loop,
    foreign_names,
    neighbours,
    tenants,
    token_limits,
    two_keys,
)
from ladle.benchmarks.faults.callers.two_keys import TwoKeys
from ladle.benchmarks.faults.faults import broken
from ladle.benchmarks.faults.server_under_test import ServerUnderTest, serve
from ladle.benchmarks.faults.stress_family import write_stress_family
from ladle.server.access.callers import NO_LIMITS, Limits

OPTIONS = ["--kv-memory", "8MiB", "--weights-memory", "8MiB", "--default-max-tokens", "8", "--max-queue", "1024"]


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ladle.benchmarks.faults.server_under_test.subprocess", PREPARED)
        yield


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stress_family(tmp_path_factory.mktemp("hostile") / "family")


@pytest.fixture(scope="module")
def server(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerUnderTest]:
    with serve(family, tmp_path_factory.mktemp("open") / "log", OPTIONS) as running:
        yield running


@pytest.fixture(scope="module")
def keys(family: Path) -> Iterator[dict[str, TwoKeys]]:
    """A hostile key for each run."""
    limits = {
        "tenants": NO_LIMITS, "limits": Limits(None, token_limits.PER_MINUTE), "neighbours": neighbours.LIMITS,
    }  # fmt: skip
    with two_keys.serving_several(family, list(limits.values()), OPTIONS) as several:
        yield dict(zip(limits, several, strict=True))


def test_requests_that_hold_the_event_loop(server: ServerUnderTest) -> None:
    """The pace is for the full run to judge; before bodies were bounded some of these took seconds."""
    row: dict[str, Any] = asyncio.run(event_loop.run(server, 1 << 19, most_s=2.0))
    assert not broken(row)
    assert len(row["held_s"]) == len(list(event_loop.attacks(1000))) + len(event_loop.FIRST)
    assert row["outcomes"]["400"] > 10


def test_names_that_are_not_the_server_s(server: ServerUnderTest) -> None:
    row: dict[str, Any] = asyncio.run(foreign_names.run(server))
    assert not broken(row) and row["count"] > 50


def test_one_tenant_learns_nothing_of_another(keys: dict[str, TwoKeys]) -> None:
    own = keys["tenants"]
    row: dict[str, Any] = asyncio.run(tenants.run(own, 4, fresh_seed()))
    assert not broken(row)
    row = asyncio.run(tenants.run(TwoKeys(own.server, own.other, own.other), 6, fresh_seed()))
    assert row["wrong"], "a key does learn of itself, which shows that the run can tell"


def test_who_leaves_early_pays(keys: dict[str, TwoKeys]) -> None:
    row: dict[str, Any] = asyncio.run(token_limits.run(keys["limits"], 20, fresh_seed()))
    assert not broken(row), row
    assert row["outcomes"]["left"] >= 2 and row["tokens_computed"] > 100


def test_a_key_that_reads_without_end_delays_nobody(keys: dict[str, TwoKeys]) -> None:
    """The pace is for the full run to judge; that the other key is answered at all, and all is given back, is not."""
    row: dict[str, Any] = asyncio.run(
        neighbours.run(keys["neighbours"], 4, 4, fresh_seed(), "neighbours", 300_000, 20.0)
    )
    assert not broken(row), row
    assert row["answers"] >= 3 and sum(row["outcomes"].values()) > 5


def test_more_connections_than_descriptors(server: ServerUnderTest) -> None:
    row: dict[str, Any] = asyncio.run(descriptors.run(server, 400))
    assert not broken(row), row
