"""What is too much is refused before each part of it is looked at, and errors do not grow with what they refuse."""

import json
import random
from typing import Any

import pytest
from asgi import client_of
from fake_engine import FakeEngine, fake_state
from seeds import fresh_seed

from ladle.merging.exceptions import InputError, shown
from ladle.merging.family.family import Family
from ladle.server.api_errors import ApiError
from ladle.server.fields.schema_binding import bind_schema
from ladle.server.http.json_request import require_few_values

pytestmark = pytest.mark.anyio
MIB = 1 << 20


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/generate", "/v1/chat/completions"])
@pytest.mark.parametrize("count", [1, 9, 10, 11, 5000])
async def test_the_first_ten_unknown_fields_are_named(
    family: Family, engine: FakeEngine, path: str, count: int
) -> None:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]} if "chat" in path else {"prompt": "hi"}
    body |= {f"strange{number:05d}": number for number in range(count)}
    async with client_of(fake_state(family, engine)) as client:
        response = await client.post(path, json=body)
    error = response.json()["error"]
    assert response.status_code == 400 and error["param"] == "strange00000" and not engine.requests
    assert error["message"].count("unknown or unsupported field") == min(count, 10)
    assert error["message"].endswith("; and more") == (count > 10)


async def test_long_names_and_values_are_cut(family: Family, engine: FakeEngine) -> None:
    async with client_of(fake_state(family, engine)) as client:
        for body in ({"prompt": "hi", "x" * 100_000: 1}, {"prompt": {"y": ["z" * 100_000] * 5}}, {"n": "9" * 100_000}):
            response = await client.post("/v1/completions", json=body)
            assert response.status_code == 400 and len(response.content) < 3000


async def test_biases_are_counted_first(family: Family, engine: FakeEngine) -> None:
    async with client_of(fake_state(family, engine)) as client:
        many = {"prompt": "hi", "logit_bias": {f"x{number}": "y" for number in range(5000)}}
        error = (await client.post("/v1/completions", json=many)).json()["error"]
        assert error["param"] == "logit_bias" and "at most 4096" in error["message"] and "5000" in error["message"]
        bias = {str(number): -1 for number in range(300)}
        fits = await client.post(
            "/v1/completions", json={"prompt": "hi", "n": 128, "max_tokens": 1, "logit_bias": bias}
        )
        assert fits.status_code == 200
    assert len(engine.requests) == 128
    assert len({id(request.sampling.logit_bias) for request in engine.requests}) == 1, "expanded once"
    assert len({request.sampling.seed for request in engine.requests}) == 128


def test_what_is_shown_of_a_value_is_the_beginning_of_its_repr() -> None:
    rng = random.Random(fresh_seed())

    def value(depth: int) -> Any:
        kind = rng.choice(["text", "number", "list", "dict", "none"] if depth else ["text", "number"])
        size = rng.choice([0, 1, 3, 300])
        if kind == "text":
            return "aé'\n😀"[rng.randrange(5)] * size
        if kind == "list":
            return [value(depth - 1) for _ in range(min(size, 20))]
        if kind == "dict":
            return {f"k{number}": value(depth - 1) for number in range(min(size, 20))}
        return None if kind == "none" else rng.randrange(10**6)

    for _ in range(300):
        given = value(3)
        whole = repr(given)
        assert shown(given) == (whole if len(whole) <= 200 else f"{whole[:200]}...")


def test_values_are_counted_where_they_are_values() -> None:
    """What stands in texts does not count, however it is escaped."""
    inside = json.dumps({"prompt": 'a,b:{[\\",\\\\' * 140_000})
    require_few_values(inside.encode(), 4 * MIB)
    require_few_values(json.dumps({"prompt": [7] * 200_000}).encode(), 4 * MIB)
    require_few_values(json.dumps({f"n{number}": "a,b" for number in range(30_000)}).encode(), 4 * MIB)
    for many in (
        [7] * 300_000,
        [[]] * 300_000,
        [{}] * 300_000,
        ["a"] * 300_000,
        {f"n{number}": "a" for number in range(40_000)},
    ):
        for body in (many, {"x": 'a\\"', "y": many, "z": '"'}):
            with pytest.raises(ApiError) as caught:
                require_few_values(json.dumps(body).encode(), 4 * MIB)
            assert caught.value.status_code == 400 and "262144 values" in caught.value.message
    require_few_values(json.dumps([7] * 300_000).encode(), 16 * MIB)
    # A text of which every character is written as an escape fits, and one of nothing but quotes does not.
    require_few_values(json.dumps({"prompt": "漢" * 690_000}).encode(), 4 * MIB)
    with pytest.raises(ApiError, match="1048576 backslashes"):
        require_few_values(json.dumps({"prompt": '"' * 1_100_000}).encode(), 4 * MIB)


async def test_large_bodies_are_read_in_turns(family: Family, engine: FakeEngine) -> None:
    state = fake_state(family, engine)
    asked: list[object] = []
    run = state.reading.run

    async def spy(caller: Any, *work: Any) -> Any:
        asked.append(caller)
        return await run(caller, *work)

    state.reading.run = spy  # type: ignore[method-assign]
    async with client_of(state) as client:
        for size, turns in ((100, 0), (1 << 18, 1)):
            body = {"prompt": "hi", "max_tokens": 1, "user": "x" * size}
            assert (await client.post("/v1/completions", json=body)).status_code == 200
            assert len(asked) == turns
            # It is the client's address that takes turns, where nobody has a key.
            assert set(asked) <= {"127.0.0.1"}


def test_a_schema_may_be_large_but_not_endless() -> None:
    fits = {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(5000)}}
    assert bind_schema(fits, "f")["properties"]["p7"] == {"type": "string"}
    for schema in ({"enum": list(range(100_000))}, {"enum": ["x" * 100_000] * 20}, {"enum": [["x"] * 30_000] * 3}):
        with pytest.raises(InputError, match="at most 50000 parts"):
            bind_schema(schema, "f")
