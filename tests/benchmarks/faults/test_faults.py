"""Small versions of the runs that tell whether a server can be trusted, against one server; the full ones are
``ladle bench faults``."""

import asyncio
import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prepared_process import PREPARED
from seeds import fresh_seed

from ladle.benchmarks.faults import cancelled_streams, concurrent_loads, grammar_storm, overload, request_storm, soak
from ladle.benchmarks.faults.drawn import Drawn
from ladle.benchmarks.faults.faults import VOCABULARY, broken
from ladle.benchmarks.faults.memory_watch import Look, MemoryWatch
from ladle.benchmarks.faults.reply_check import WrongReply, check
from ladle.benchmarks.faults.request_fuzzer import RequestFuzzer
from ladle.benchmarks.faults.server_under_test import ServerUnderTest, serve
from ladle.benchmarks.faults.stress_family import write_stress_family
from ladle.benchmarks.machine import write_csv
from ladle.guidance.registry import METHODS
from ladle.server.fields.sampling import SamplingFields, SteeredFields

OPTIONS = ["--kv-memory", "4MiB", "--weights-memory", "8MiB", "--max-sequences", "8", "--max-queue", "64"]


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ladle.benchmarks.faults.server_under_test.subprocess", PREPARED)
        yield


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerUnderTest]:
    folder = tmp_path_factory.mktemp("faults")
    family = write_stress_family(folder / "family")
    with serve(family, folder / "log", [*OPTIONS, "--default-max-tokens", "8"]) as running:
        yield running


def of_memory(problem: str) -> bool:
    """Of a server that has just begun, memory says nothing."""
    return problem.startswith(("resident_growth", "kept_growth"))


def test_generated_requests(server: ServerUnderTest) -> None:
    row: dict[str, Any] = asyncio.run(
        request_storm.run(server, 80, 8, fresh_seed(), VOCABULARY, warm=40, rests=2, rest_s=0.5)
    )
    assert not [problem for problem in broken(row) if not of_memory(problem)]
    assert (row["warm"], row["count"]) == (40, 80) and sum(row["outcomes"].values()) == 120
    assert len(row["resident_at_rest_mb"]) == 3 and min(row["resident_at_rest_mb"]) > 100
    assert row["sound_served"] > row["sound_refused"], "what is meant to be sound is"


def test_hostile_grammars(server: ServerUnderTest) -> None:
    row: dict[str, Any] = asyncio.run(grammar_storm.run(server, 300, 6, fresh_seed()))
    assert not broken(row)
    assert row["count"] == 300 and row["plain"] == 12 and row["served"] > 30


def test_streams_that_are_left(server: ServerUnderTest) -> None:
    row: dict[str, Any] = asyncio.run(
        cancelled_streams.run(server, 24, 6, fresh_seed(), VOCABULARY, ["mage", "cd", "fusion_route", "rewarded_soup"])
    )
    assert not broken(row)
    assert row["count"] >= 24 and row["answers_compared"] >= 4


def test_loads_beside_merges(tmp_path: Path) -> None:
    """Before merges were built apart from loads, the server broke, or died, within seconds."""
    seed = fresh_seed()
    with concurrent_loads.serving(tmp_path, seed) as (server, key):
        row: dict[str, Any] = asyncio.run(concurrent_loads.run(server, 5, 4, seed, key))
    assert not broken(row)
    assert row["outcomes"]["merged"] > 10 and row["outcomes"]["reload"] >= 1
    assert broken({**row, "wrong": 1, "first_wrong": "x"}) == ["wrong: x"]


def test_overload(server: ServerUnderTest) -> None:
    """What is refused and what is served adds up; the pace is for the full run to judge."""
    row: dict[str, Any] = asyncio.run(overload.run(server, 8, 10.0, 2.0, 4.0, 12, fresh_seed()))
    assert not row["held_at_end"] and not row["tracebacks"] and row["loaded_requests_per_s"] > 0
    other = json.loads(row["other"])
    assert set(other) <= {"served after the end"}, other
    assert row["refused"] == sum(row["retry_after_s"].values())


def test_a_soak(server: ServerUnderTest) -> None:
    row: dict[str, Any] = asyncio.run(soak.run(server, 0.05, 0.01, 4, fresh_seed(), VOCABULARY, False, 2, 0.1))
    assert not [problem for problem in broken(row) if not of_memory(problem)]
    counts = row["requests_at_rest"]
    assert counts == sorted(counts) and counts[0] > 0 and counts[-1] == row["count"]
    assert len(row["resident_at_rest_mb"]) == len(counts) == 3 and row["resident_at_rest_mb"][0] > 0


def test_the_family_serves_every_method(server: ServerUnderTest) -> None:
    async def described() -> dict[str, Any]:
        async with request_storm.session_of(server) as session:
            return await request_storm.family_of(session)

    family = asyncio.run(described())
    assert set(RequestFuzzer(random.Random(0), family, VOCABULARY).methods) == set(METHODS)


def test_every_field_that_says_how_to_sample_is_drawn() -> None:
    """A field that is new has to be drawn as well."""
    method = {"available": True, "preference": "required", "options": [], "needs": []}
    family = {"name": "f", "objectives": ["a"], "members": [], "methods": {"bone_soup": method}}
    fuzzer, drawn = RequestFuzzer(random.Random(fresh_seed()), family, VOCABULARY), {}
    for _ in range(4000):
        request = fuzzer.draw(sound=True)
        drawn.setdefault(request.path, set()).update(json.loads(request.body))
    older = set(SamplingFields.model_fields) - {"user"}
    for path in ("/v1/generate", "/v1/completions", "/v1/chat/completions"):
        assert not older - drawn[path], path
    for path in ("/v1/messages", "/v1/responses"):
        assert not set(SteeredFields.model_fields) - drawn[path], path


WHOLE = {"choices": [{"finish_reason": "stop"}], "usage": {"prompt_tokens": 1, "total_tokens": 2}}
ERROR = {"error": {"message": "m", "type": "invalid_request_error", "param": None, "code": "c"}}


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, json.dumps(ERROR)),
        (503, json.dumps(ERROR)),
        (200, '{"choices": [{"finish_reason": NaN}]}'),
        (200, "no JSON"),
        (200, json.dumps({**WHOLE, "choices": []})),
        (200, json.dumps({**WHOLE, "choices": [{"finish_reason": "error"}]})),
        (400, '{"error": "text"}'),
    ],
)
def test_a_wrong_answer_is_one(status: int, body: str) -> None:
    drawn = Drawn("/v1/generate", b"", "sound")
    with pytest.raises(WrongReply):
        check(drawn, status, "application/json", body.encode())


@pytest.mark.parametrize(
    "events",
    [
        ['{"a": 1}'],
        ['{"error": {}}', "[DONE]"],
        [json.dumps({"error": {**ERROR["error"], "type": "server_error"}})],
        ['{"a": Infinity}', "[DONE]"],
    ],
)
def test_a_wrong_stream_is_one(events: list[str]) -> None:
    body = "".join(f"data: {event}\n\n" for event in events).encode()
    with pytest.raises(WrongReply):
        check(Drawn("/v1/generate", b"", "sound", stream=True), 200, "text/event-stream", body)
    with pytest.raises(WrongReply):
        check(Drawn("/v1/generate", b"", "sound", stream=True), 200, "text/event-stream", b"data: {")


def test_right_answers_pass() -> None:
    drawn = Drawn("/v1/generate", b"", "sound")
    assert check(drawn, 200, "application/json", json.dumps(WHOLE).encode()) == "200"
    assert check(drawn, 400, "application/json", json.dumps(ERROR).encode()) == "400 c"
    stream = b'data: {"a": 1}\n\n: keep-alive\n\ndata: [DONE]\n\n'
    assert check(drawn, 200, "text/event-stream", stream) == "200"
    ended = b'data: {"a": 1}\n\ndata: ' + json.dumps(ERROR).encode() + b"\n\n"
    assert check(drawn, 200, "text/event-stream", ended) == "200, then c"


TRIPPED = {"steering": {"monitor": {"stopped": [{"index": 0}]}}}


@pytest.mark.parametrize(
    ("path", "ended", "other"),
    [
        ("/v1/generate", {"choices": [{"finish_reason": "content_filter"}]}, {"choices": [{"finish_reason": "stop"}]}),
        ("/v1/messages", {"stop_reason": "refusal"}, {"stop_reason": "end_turn"}),
        (
            "/v1/responses",
            {"status": "incomplete", "incomplete_details": {"reason": "content_filter"}},
            {"status": "completed", "incomplete_details": None},
        ),
    ],
)
def test_an_answer_ends_by_a_monitor_where_one_says_so(path: str, ended: dict, other: dict) -> None:
    counts = {"usage": {name: 1 for name in ("prompt_tokens", "total_tokens", "input_tokens", "output_tokens")}}
    drawn = Drawn(path, b"", "sound")
    for right in ({**ended, **TRIPPED}, other):
        assert check(drawn, 200, "application/json", json.dumps({**right, **counts}).encode()) == "200"
    for wrong in (ended, {**other, **TRIPPED}):
        with pytest.raises(WrongReply):
            check(drawn, 200, "application/json", json.dumps({**wrong, **counts}).encode())


def named(*events: dict) -> bytes:
    return b"".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events)


@pytest.mark.parametrize(
    ("path", "end", "error"),
    [
        ("/v1/messages", {"type": "message_stop"}, {"type": "error", "error": {"type": "api_error", "message": "m"}}),
        (
            "/v1/responses",
            {"type": "response.completed", "response": {"error": None}},
            {"type": "response.failed", "response": {"error": {"code": "server_error"}}},
        ),
    ],
)
def test_streams_of_other_apis(path: str, end: dict, error: dict) -> None:
    drawn, ping = Drawn(path, b"", "sound", stream=True), {"type": "ping"}

    def judged(body: bytes) -> str:
        return check(drawn, 200, "text/event-stream", body)

    assert judged(named(ping, end)) == "200"
    misnamed = named(end).replace(b"event: ", b"event: x")
    for wrong in (named(ping), named(end, ping), named(end, end), named(ping, error), misnamed, b"data: {}\n\n"):
        with pytest.raises(WrongReply):
            judged(wrong)
    whole = {"usage": {"input_tokens": 1, "output_tokens": 1}, "stop_reason": "end_turn", "status": "completed"}
    assert check(drawn, 200, "application/json", json.dumps(whole).encode()) == "200"
    with pytest.raises(WrongReply):
        unsaid = {**whole, "stop_reason": None, "status": "in_progress"}
        check(drawn, 200, "application/json", json.dumps(unsaid).encode())


def test_what_does_not_hold_is_said() -> None:
    good = {"run": "requests", "wrong": 0, "tracebacks": 0, "held_at_end": {}, "resident_growth": 0.01}
    assert not broken(good)
    grown = ({"resident_growth": 0.03}, {"kept_growth": 0.03})
    for change in ({"wrong": 1}, {"tracebacks": 2}, {"held_at_end": {"kv": 1.0}}, *grown):
        assert len(broken({**good, **change})) == 1
    over = {"run": "overload", "p99_ratio": 1.4, "refused": 3, "retry_after_s": {2: 3}}
    assert not broken(over)
    assert broken({**over, "p99_ratio": 1.6}) and broken({**over, "refused": 0, "retry_after_s": {}})


def test_memory_is_compared_by_thirds_of_what_is_settled(server: ServerUnderTest) -> None:
    """Medians, and the least of either: a saw-tooth does not grow, and what rises in its valleys does."""
    watch = MemoryWatch(server)
    sizes = [9e6, 1e6, 5e6, 3e6, 4e6, 8e6, 4e6, 8e6, 4e6, 5e6]
    watch.looks = [Look(int(size), place) for place, size in enumerate(sizes)]
    found = watch.growth(lambda look: look.requests >= 1)
    assert found == {"resident_warm_mb": 3.0, "resident_end_mb": 5.0, "resident_growth": 0.6667, "kept_growth": 3.0}
    assert watch.growth(lambda look: False)["kept_growth"] == 0.0, "never settled: the last look alone"
    watch.looks = []
    assert watch.growth(lambda look: True) == {}
    watch.look(7)
    assert [look.requests for look in watch.looks] == [7] and watch.looks[0].resident > 1e6


def test_a_run_is_added_to_those_before(tmp_path: Path) -> None:
    """A later version's row may have columns that earlier ones lack."""
    path = tmp_path / "deep" / "runs.csv"
    write_csv(path, [{"run": "soak", "wrong": 0}], append=True)
    write_csv(path, [{"run": "soak", "wrong": 1, "kept_growth": 0.01}], append=True)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["wrong"], row["kept_growth"]) for row in rows] == [("0", ""), ("1", "0.01")]
    assert all(row["hardware"] and row["versions"] for row in rows)


def test_the_same_seed_draws_the_same() -> None:
    family = {
        "name": "f",
        "objectives": ["a", "b"],
        "members": [{"name": "m", "kind": "value"}],
        "methods": {"x": {"available": True, "preference": "required", "options": ["strength"], "needs": []}},
    }
    seed = fresh_seed()
    first, second = (RequestFuzzer(random.Random(seed), family, VOCABULARY) for _ in range(2))
    drawn = [first.draw() for _ in range(200)]
    assert drawn == [second.draw() for _ in range(200)]
    assert any(b'"monitor": {' in one.body for one in drawn), "answers are watched, too"
    assert {first.draw(sound=True).kind for _ in range(20)} == {"sound"}
