import json
from pathlib import Path

import numpy as np
import pytest
from tiny_models import write_family

from ladle.guidance.check import check_family
from ladle.merging.errors import FamilyError
from ladle.merging.family import Family


def test_the_report_holds_what_was_loaded(root: Path, family: Family) -> None:
    report = check_family(root)
    assert report.members == tuple(family.members()) and report.objectives == family.objectives
    assert family.matrix is not None and report.condition == pytest.approx(np.linalg.cond(family.matrix))
    assert report.default_method == "bone_soup" and report.presets == ("cheerful",)
    assert report.bank_bytes == 4 * sum(member.numel() for member in family.low_rank.values())
    assert report.merge_bytes == family.base.nbytes()
    corners = {(corner.method, corner.preference): corner.coefficients for corner in report.corners}
    assert len(corners) == 8  # three corners and the middle, for two merging methods
    for index, objective in enumerate(family.objectives):
        expected = np.linalg.solve(family.matrix.T, np.eye(3)[index])
        np.testing.assert_allclose(corners["bone_soup", objective].values, expected, atol=1e-12)
    np.testing.assert_allclose(corners["rewarded_soup", "uniform"].values, 1 / 3)


def test_it_prints_as_text_and_json(root: Path) -> None:
    report = check_family(root)
    document = json.loads(json.dumps(report.as_dict()))
    assert document["methods"]["base"] == {"available": True, "reason": None}
    assert {member["name"] for member in document["members"]} >= {"bone-positive", "only-simple"}
    assert document["corners"][0]["coefficients"].keys() == {"bone-positive", "bone-simple", "bone-concise"}
    text = report.text()
    for part in (
        "family tiny",
        "bone-positive",
        "condition number 1.818",
        "rewarded_soup",
        "+1.5455",
        "low-rank",
        "full",
    ):
        assert part in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_warnings_reach_the_report(tmp_path: Path) -> None:
    report = check_family(write_family(tmp_path, n=2, beta=0.504, policies=False))
    assert any("ill-conditioned" in warning for warning in report.warnings)
    assert any("bone_soup at positive" in warning and "large" in warning for warning in report.warnings)
    assert "warning: " in report.text()
    assert sum("ill-conditioned" in warning for warning in report.warnings) == 1


def test_a_broken_promise_fails_the_check(tmp_path: Path) -> None:
    root = write_family(
        tmp_path, policies=False, extra='[presets.x]\nmethod = "rewarded_soup"\npreference = {simple = 1}'
    )
    with pytest.raises(FamilyError, match=r"presets\.x\.method"):
        check_family(root)
