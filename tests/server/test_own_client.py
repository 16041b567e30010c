"""Our own client against the real server over a real engine: both sides agree on the contract."""

import asyncio
import json

import pytest
from typer.testing import CliRunner

from ladle.clients import AsyncClient, BadRequestError, Client, NotFoundError
from ladle.clients.sdk_commands import app
from ladle.merging.family.family import Family

pytestmark = pytest.mark.usefixtures("idle_after")


def test_what_is_streamed_is_what_is_answered(live_url: str, family: Family) -> None:
    first, last = family.objectives[0], family.objectives[-1]
    wish = {first: 3.0, last: 1.0}
    with Client(live_url) as client:
        whole = client.generate("the rain", preference=wish, method="bone_soup", trace=True, max_tokens=12, seed=5)
        stream = client.generate(
            "the rain", preference=wish, method="bone_soup", trace=True, max_tokens=12, seed=5, stream=True
        )
        texts = [token.text for token in stream]
        streamed = stream.result()
    assert "".join(texts) == whole.text == streamed.text
    assert whole.tokens and streamed.tokens
    assert [token.id for token in streamed.tokens] == [token.id for token in whole.tokens]
    assert all(token.shift is not None and token.shift >= 0 for token in whole.tokens)
    assert streamed.steering == whole.steering
    assert whole.steering and whole.steering.preference
    assert {name: weight for name, weight in whole.steering.preference.items() if weight} == {first: 0.75, last: 0.25}
    assert whole.usage and whole.usage.completion_tokens == len(whole.tokens)
    assert whole.seed == 5


def test_leaving_a_stream_frees_its_lanes(live_url: str) -> None:
    """idle_after asserts that nothing is held."""
    with Client(live_url) as client, client.chat("the rain", stream=True, max_tokens=100) as stream:
        next(stream)


def test_several_choices(live_url: str) -> None:
    with Client(live_url) as client:
        options = {"n": 3, "max_tokens": 6, "seed": 9, "logprobs": True, "top_logprobs": 2}
        whole = client.generate("the sea", **options)  # type: ignore[misc]
        streamed = client.generate("the sea", stream=True, **options).result()  # type: ignore[misc]
    assert [choice.text for choice in streamed.choices] == [choice.text for choice in whole.choices]
    assert len({choice.text for choice in whole.choices}) > 1
    assert whole.tokens and whole.tokens[0].top and len(whole.tokens[0].top) == 2


def test_questions_about_the_server(live_url: str, family: Family) -> None:
    with Client(live_url) as client:
        assert client.health() and client.ready()
        served = client.families()
        assert [entry.name for entry in served] == [family.name]
        assert served[0] == client.family(family.name)
        assert served[0].objectives == list(family.objectives)
        assert family.name in [model.id for model in client.models()]
        report = client.coefficients(dict.fromkeys(family.objectives, 1.0), method="bone_soup")
    assert report.coefficients and report.base_share is not None
    assert sum(report.coefficients.values()) + report.base_share == pytest.approx(1)


def test_refusals_say_where(live_url: str) -> None:
    with Client(live_url) as client:
        with pytest.raises(BadRequestError) as caught:
            client.chat("a", preference={"nonsense": 1.0})
        assert caught.value.param == "steering.preference.nonsense"
        assert caught.value.request_id
        with pytest.raises(BadRequestError) as caught:
            client.chat("a", temperature=9.0, stream=True)
        assert caught.value.param == "temperature"
        with pytest.raises(NotFoundError, match="known"):
            client.chat("a", model="nobody")
        with pytest.raises(NotFoundError):
            client.family("nobody")


def test_many_at_once(live_url: str, family: Family) -> None:
    async def run() -> None:
        async with AsyncClient(live_url) as client:
            wishes = [{family.objectives[0]: 1.0, family.objectives[-1]: float(index)} for index in range(6)]
            options = {"max_tokens": 6, "seed": 3}
            alone = [await client.chat("the rain", preference=wish, **options) for wish in wishes]  # type: ignore[misc]
            together = await asyncio.gather(
                *(client.chat("the rain", preference=wish, **options) for wish in wishes)  # type: ignore[misc]
            )
        assert [answer.text for answer in together] == [answer.text for answer in alone]

    asyncio.run(run())


def test_the_command_line(live_url: str, family: Family) -> None:
    preference = f"{family.objectives[0]}=1"
    result = CliRunner().invoke(
        app, ["generate", "the rain", "--url", live_url, "-p", preference, "--max-tokens", "5", "--seed", "1", "--json"]
    )
    assert result.exit_code == 0, result.stderr
    answer = json.loads(result.stdout)
    shown = CliRunner().invoke(
        app,
        ["generate", "the rain", "--url", live_url, "-p", preference, "--max-tokens", "5", "--seed", "1", "--trace"],
    )
    assert shown.stdout == answer["choices"][0]["text"] + "\n"
    assert "tokens" not in answer["choices"][0]
    result = CliRunner().invoke(app, ["coefficients", preference, "--url", live_url, "--json"])
    assert set(json.loads(result.stdout)["coefficients"]) <= set(family.low_rank)
