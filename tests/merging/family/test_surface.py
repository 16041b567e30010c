"""``surface.json``: what is read, what is refused, and which coefficients it speaks for."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from seeds import fresh_seed
from tiny_models import write_family

from ladle.merging.exceptions import FamilyError
from ladle.merging.family.family import load_family
from ladle.merging.family.manifest import load_manifest
from ladle.merging.family.measurement_file import fingerprint_of, write_measured
from ladle.merging.family.surface import SURFACE_NAME, Surface, folders_of, quadratic
from ladle.merging.preferences.simplex import grid

MEMBERS = ["bone-positive", "bone-simple"]
CORNERS = [[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0], [1.0, 0.5], [0.5, 1.0]]


def document(**changes: Any) -> dict[str, Any]:
    """One reward falls with the distance from (1.5, 0), the other one with that from (0, 1.5)."""
    return {
        "fingerprint": "", "members": MEMBERS, "sampling": {"temperature": 0.8}, "answers": 100, "design": CORNERS,
        "rewards": {"positive": [3, 3, 0, -1, 0, -1], "simple": [3, 0, 3, -1, 0, -1]},
        "surprise": [0, 0.1, 0.1, 0, 0, 0], "most_surprise": 9, "explained": {"positive": 0.9, "simple": 0.9},
        **changes,
    }  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_family(tmp_path, seed=fresh_seed() % 1000, n=2)


def write(root: Path, found: Any) -> None:
    (root / SURFACE_NAME).write_text(found if isinstance(found, str) else json.dumps(found))


def own(root: Path) -> str:
    return fingerprint_of(folders_of(load_manifest(root), root, MEMBERS))


def test_a_family_knows_its_surface_until_its_members_change(root: Path) -> None:
    assert load_family(root).surface is None
    write(root, document(fingerprint=own(root)))
    found = load_family(root).surface
    assert found is not None and found.members == MEMBERS
    write_measured(found, root / SURFACE_NAME)
    assert load_family(root).surface == found
    for name, counts in (("only-simple", False), ("bone-simple", True)):
        file = next((root / "adapters" / name).glob("*.safetensors"))
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(bytes(content))
        assert (load_family(root).surface is None) == counts, f"{name} is {'' if counts else 'not '}part of it"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"answers": "many"}, "answers"),
        ({"extra": 1}, "extra"),
        ({"rewards": {}}, "need positive, simple"),
        ({"surprise": [0.0]}, "surprise: 1 numbers; need 6, of 2 members"),
        ({"rewards": {"positive": [0] * 6, "simple": [0] * 7}}, "simple: 7 numbers"),
        ({"design": CORNERS[:5]}, "design: need 6 points or more"),
        ({"design": [[0.0]] * 9}, "of 2 coefficients each"),
        ({"members": [], "surprise": [0], "rewards": {"positive": [0], "simple": [0]}}, "design"),
    ],
)
def test_what_makes_no_surface_is_named(root: Path, changes: dict[str, Any], words: str) -> None:
    write(root, document(fingerprint=own(root), **changes))
    with pytest.raises(FamilyError, match=words) as told:
        load_family(root)
    assert SURFACE_NAME in str(told.value)


def test_quadratic_is_every_quadratic() -> None:
    random = np.random.default_rng(fresh_seed())
    points, square, line = random.normal(size=(40, 3)), random.normal(size=(3, 3)), random.normal(size=3)
    values = np.einsum("pi,ij,pj->p", points, square, points) + points @ line + random.normal()
    rows = quadratic(points)
    assert rows.shape == (40, 10)
    np.testing.assert_allclose(rows @ np.linalg.lstsq(rows, values, rcond=None)[0], values, atol=1e-9)


def test_corners_are_the_best_of_each_reward_and_mixes_lie_between() -> None:
    surface = Surface.model_validate(document())
    np.testing.assert_allclose(surface.best([1, 0])[0], 1.5, atol=2e-3)
    np.testing.assert_allclose(surface.best([0, 1])[1], 1.5, atol=2e-3)
    chosen = np.array([surface.best(weights) for weights in grid(2, 10)])
    heights = surface.heights(chosen)
    by_weight = np.argsort([weights[0] for weights in grid(2, 10)])
    assert (np.diff(heights[by_weight, 0]) >= -1e-3).all() and (np.diff(heights[by_weight, 1]) <= 1e-3).all()


def test_the_best_is_as_good_as_a_search_of_the_whole_space() -> None:
    """Random concave surfaces of three members: no point of a fine grid inside the measured cube is better."""
    random = np.random.default_rng(fresh_seed())
    design = np.array(np.meshgrid(*[[0.0, 1.5]] * 3)).reshape(3, -1).T
    design = np.vstack([design, random.uniform(0.2, 1.3, size=(4, 3))])
    rewards = {}
    for name in ("a", "b", "c"):
        centre = random.uniform(-0.5, 2.0, size=3)  # 3 - |c - centre|^2 / 2
        pairs = [-0.5, 0, 0, -0.5, 0, -0.5]
        rewards[name] = [3 - 0.5 * float(centre @ centre), *centre.tolist(), *pairs]
    surprise = [0.0, *random.uniform(-0.1, 0.4, size=3).tolist(), *[0.0] * 6]
    surface = Surface.model_validate(
        document(members=["x", "y", "z"], design=design.tolist(), rewards=rewards, surprise=surprise, most_surprise=0.3)
    )
    axis = np.linspace(0.0, 1.5, 31)
    cube = np.array(np.meshgrid(axis, axis, axis)).reshape(3, -1).T
    cube = cube[surface.surprises(cube) <= 0.3]
    weights = random.dirichlet(np.ones(3))
    best = np.array([surface.best(weights.tolist())])
    assert ((best >= -1e-4) & (best <= 1.5001)).all() and surface.surprises(best)[0] <= 0.3 + 1e-3
    found, searched = (np.log(np.maximum(surface.heights(x), 1e-3)) @ weights for x in (best, cube))
    assert found[0] >= searched.max() - 1e-2


def test_fluency_bounds_what_is_chosen_and_the_base_is_always_allowed() -> None:
    free = Surface.model_validate(document())
    bound = Surface.model_validate(document(most_surprise=0.1))
    at, near = np.array([free.best([1, 0])]), np.array([bound.best([1, 0])])
    assert free.surprises(at)[0] > 0.14 and 0.09 < bound.surprises(near)[0] <= 0.1001
    assert Surface.model_validate(document(most_surprise=0.0)).best([1, 0]) == (0.0, 0.0)


def test_a_unit_of_a_reward_does_not_matter() -> None:
    weights = np.random.default_rng(fresh_seed()).dirichlet(np.ones(2)).tolist()
    one, other = document(), document()
    other["rewards"] = {"positive": [40 * w for w in one["rewards"]["positive"]], "simple": one["rewards"]["simple"]}
    found = [Surface.model_validate(each).best(weights) for each in (one, other)]
    np.testing.assert_allclose(found[0], found[1], atol=2e-3)


def tangled(**changes: Any) -> Surface:
    """What helps the second reward helps the first even more: by itself, asking for the second alone gives more of the
    first than asking for a little of it beside the third."""
    rewards = {
        "positive": [1.0, 1.0, 0.9, 0.0, -0.1, 0, 0, -0.1, 0, -0.1],
        "simple": [1.0, 0.0, 1.0, 0.0, 0, 0, 0, -0.1, 0, 0],
        "concise": [1.0, 0.0, 0.0, 2.0, 0, 0, 0, 0, 0, -0.1],
    }
    design = np.array(np.meshgrid(*[[0.0, 2.0]] * 3)).reshape(3, -1).T
    fields = {"members": ["x", "y", "z"], "design": [*design.tolist(), *np.eye(3).tolist()], "rewards": rewards}
    surprise = [0.0, 0.2, 0.2, 0.2, *[0.0] * 6]
    return Surface.model_validate(document(**fields, surprise=surprise, most_surprise=0.5) | changes)


def test_rewards_keep_the_order_of_their_weights_where_that_is_asked_for() -> None:
    plain, ordered = tangled(), tangled(order=2.0)

    def height(surface: Surface, weights: list[float]) -> np.ndarray:
        return surface.heights(np.array([surface.best(weights)]))[0]

    apart, beside = [0.0, 1.0, 0.0], [1 / 3, 0.0, 2 / 3]
    assert height(plain, apart)[0] > height(plain, beside)[0] + 0.1
    assert height(ordered, apart)[0] < height(ordered, beside)[0] + 1e-2
    even = [1 / 3] * 3
    level = height(ordered, even)
    np.testing.assert_allclose(level, height(plain, even), rtol=1e-2)
    for weights in grid(3, 3):
        # At this price both bounds hold, and what is asked for alone still gets more than its share.
        found = height(ordered, list(weights))
        for mu, reward, share in zip(weights, found, level, strict=True):
            assert reward <= share * 1.01 if mu == 0 else reward >= share * 0.99
    assert height(ordered, [1.0, 0.0, 0.0])[0] > 1.1 * level[0]


def test_a_preference_that_hardly_changes_hardly_changes_what_order_asks_for() -> None:
    surface, random = tangled(order=0.5), np.random.default_rng(fresh_seed())
    for weights in random.dirichlet(np.ones(3), size=5):
        near = weights + random.normal(size=3) * 1e-6
        near = np.abs(near) / np.abs(near).sum()
        points = np.array([surface.best(w.tolist()) for w in (weights, near)])
        np.testing.assert_allclose(*np.log(surface.heights(points)) @ weights, atol=5e-3)


def test_an_order_that_weighs_nothing_changes_nothing() -> None:
    weights = np.random.default_rng(fresh_seed()).dirichlet(np.ones(3)).tolist()
    assert tangled(order=0.0).best(weights) == tangled().best(weights)
    with pytest.raises(ValueError, match="order"):
        tangled(order=-0.1)
