"""Plans that route are refused as long as the engine does not run them."""

from pathlib import Path

import pytest
from routed_folder import write_routed_family
from tiny_engine import fresh_seed

from ladle.guidance.plan import Steering
from ladle.guidance.registry import resolve
from ladle.merging.errors import InputError
from ladle.merging.family import load_family
from ladle.server.errors import ApiError
from ladle.server.steering import plan_of


def test_a_routed_request_is_refused(tmp_path: Path) -> None:
    family = load_family(write_routed_family(tmp_path / "family", seed=fresh_seed(), defer=True))
    for method in ("fusion_route", "co_llm"):
        assert resolve(family, Steering(method=method)).routing is not None
        with pytest.raises(InputError, match="cannot do yet") as caught:
            plan_of(family, None, {"method": method})
        assert caught.value.field == "steering.method"
        for model in (f"tiny/{method}", f"tiny/{method}@positive=1"):
            with pytest.raises(ApiError, match="cannot do yet") as answer:
                plan_of(family, model, None)
            assert (answer.value.status_code, answer.value.param) == (400, "model")
    assert plan_of(family, "tiny/bone_soup", None).method == "bone_soup"
