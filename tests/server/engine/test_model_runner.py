"""A step enters only what its plans have."""

from pathlib import Path
from typing import Any

import pytest
from routed_folder import write_routed_family
from routed_requests import request
from seeds import fresh_seed
from tiny_engine import build, serve

from ladle.merging.family.family import load_family
from ladle.server.engine import model_runner
from ladle.server.engine.scores import sampler


def test_router_candidates_catch_up_and_tracer_wait_for_a_plan_that_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = load_family(write_routed_family(tmp_path, seed=fresh_seed() % 1000))
    engine = build(family)
    entered: list[str] = []

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def watched(*args: Any, **named: Any) -> Any:
            entered.append(name)
            return original(*args, **named)

        monkeypatch.setattr(owner, name, watched)

    for owner, name in (
        (engine.models.router, "choose"),
        (model_runner, "plan_catch_up"),
        (model_runner, "value_candidates"),
        (model_runner, "keep_chosen"),
        (sampler, "Tracer"),
    ):
        watch(owner, name)
    plain = [{"method": "base"}, {"method": "bone_soup", "preference": {"positive": 1.0}}]
    serve(engine, [request(family, str(i), steering, (5, 6, 7), max_tokens=3) for i, steering in enumerate(plain)])
    assert not entered
    serve(engine, [request(family, "routed", {"method": "fusion_route", "trace": True}, (5, 6, 7), max_tokens=2)])
    assert set(entered) == {"choose", "plan_catch_up", "Tracer"}
