"""``steering.target`` over HTTP: a preference is found and said, and what cannot be is refused by name."""

from dataclasses import replace

import pytest
from asgi import client_of
from calibrations import identity_calibration
from fake_engine import FakeEngine, fake_state

from ladle.merging.family.family import Family

pytestmark = pytest.mark.anyio


def calibrated(family: Family) -> Family:
    return replace(family, calibration=identity_calibration(family.objectives))


async def test_an_answer_says_what_was_found_for_its_target(family: Family, engine: FakeEngine) -> None:
    target = {"positive": 0.3}
    async with client_of(fake_state(calibrated(family), engine)) as client:
        native = (await client.post("/v1/generate", json={"prompt": "x", "steering": {"target": target}})).json()
        body = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "steering": {"target": target}}
        openai = (await client.post("/v1/chat/completions", json=body)).json()
        coefficients = (await client.post("/v1/coefficients", json={"steering": {"target": target}})).json()
        # What the model string says towards gives way to the request's own word.
        body["model"] = "tiny@simple=1"
        named = (await client.post("/v1/chat/completions", json=body)).json()
    for reply in (native["steering"], openai["steering"], coefficients, named["steering"]):
        assert reply["preference"] == pytest.approx({"positive": 0.3, "simple": 0.7}, abs=1e-3)
        assert reply["method"] == "bone_soup"
    outcome = native["steering"]["target"]["positive"]
    assert outcome["wanted"] == 0.3 and outcome["quantile"] == pytest.approx(0.3, abs=1e-3)
    assert outcome["low"] < 0.3 < outcome["high"] and outcome["reward"] == pytest.approx(0.3, abs=1e-3)
    assert native["steering"]["target"]["simple"]["wanted"] is None
    plans = [request.plan for request in engine.requests]
    assert all(plan.preference == plans[0].preference for plan in plans) and len(plans) == 3


async def test_families_say_what_can_be_asked_for(family: Family, engine: FakeEngine) -> None:
    async with client_of(fake_state(calibrated(family), engine)) as client:
        found = (await client.get("/v1/families/tiny")).json()["calibration"]
    drawn = found.pop("map")
    assert len(drawn) == 10 and all(
        point["quantiles"] == pytest.approx(point["preference"], abs=1e-3) for point in drawn
    )
    assert found == {
        "steering": {"method": "bone_soup"}, "answers": 60,
        "reachable": {name: [pytest.approx(0.0), pytest.approx(1.0)] for name in family.objectives},
    }  # fmt: skip
    async with client_of(fake_state(family, engine)) as client:
        assert (await client.get("/v1/families/tiny")).json()["calibration"] is None


@pytest.mark.parametrize(
    ("steering", "param", "words"),
    [
        (
            {"target": {"positive": 0.9, "simple": 0.9}},
            "steering.target",
            "nearest is {'positive': 0.5, 'simple': 0.5}",
        ),
        ({"target": {"wit": 0.5}}, "steering.target.wit", "positive, simple"),
        ({"target": {"positive": 2}}, "steering.target.positive", "quantile from 0 to 1"),
        ({"target": {"positive": 0.5}, "preference": {"positive": 1}}, "steering.target", "steering.preference"),
        ({"target": {"positive": 0.5}, "method": "base"}, "steering.target", "only with method bone_soup"),
        ({"target": 0.5}, "steering.target", "object of quantiles"),
    ],
)
async def test_what_is_refused(
    family: Family, engine: FakeEngine, steering: dict[str, object], param: str, words: str
) -> None:
    async with client_of(fake_state(calibrated(family), engine)) as client:
        reply = await client.post("/v1/generate", json={"prompt": "x", "steering": steering})
        bare = await client.post("/v1/chat/completions", json={
            "model": "tiny", "messages": [{"role": "user", "content": "x"}], "steering": steering,
        })  # fmt: skip
    for answer in (reply, bare):
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param and words in answer.json()["error"]["message"]
    assert not engine.requests


async def test_a_family_that_is_not_calibrated_refuses(family: Family, engine: FakeEngine) -> None:
    async with client_of(fake_state(family, engine)) as client:
        reply = await client.post("/v1/generate", json={"prompt": "x", "steering": {"target": {"positive": 0.5}}})
    assert reply.status_code == 400 and "ladle calibrate" in reply.json()["error"]["message"]
