"""[[values]] and [[models]] of a family.toml: what is read and everything that is refused."""

from pathlib import Path

import pytest

from ladle.merging.exceptions import FamilyError
from ladle.merging.family.manifest import load_manifest

GUIDED = """
name = "demo"
objectives = ["positive", "simple"]
[base]
model = "base"
[[models]]
name = "small"
model = "pypi:llm-small"
[[models]]
name = "dull"
model = "dull"
amateur = true
[[policies]]
name = "only-positive"
path = "p"
objective = "positive"
[[values]]
name = "tuned"
kind = "implicit"
path = "a"
objective = "positive"
anti = "only-positive"
system = "Be kind."
[[values]]
name = "mixed"
kind = "implicit"
path = "b"
rewards = [0.25, 0.75]
base = "small"
reference = false
[[values]]
name = "judge"
kind = "explicit"
path = "c"
objective = "simple"
[[values]]
name = "arm"
kind = "implicit"
path = "d"
[[experts]]
name = "math"
path = "e"
[router]
path = "f"
"""
MIXED = 'path = "b"\nrewards = [0.25, 0.75]\nbase = "small"\nreference = false'
JUDGE = 'path = "c"\nobjective = "simple"'
ARM = 'path = "d"\n'


def write(folder: Path, text: str) -> Path:
    (folder / "family.toml").write_text(text, encoding="utf-8")
    return folder


def test_values_and_models_are_read(tmp_path: Path) -> None:
    manifest = load_manifest(write(tmp_path, GUIDED))
    assert [(model.name, model.model, model.amateur) for model in manifest.models] == [
        ("small", "pypi:llm-small", False),
        ("dull", "dull", True),
    ]
    tuned, mixed, judge, arm = manifest.values
    assert (tuned.objective, tuned.rewards, tuned.anti, tuned.system) == (
        "positive",
        None,
        "only-positive",
        "Be kind.",
    )
    assert (tuned.base, mixed.base, mixed.rewards, mixed.reference) == (None, "small", [0.25, 0.75], False)
    assert (judge.kind, judge.objective) == ("explicit", "simple")
    assert (arm.objective, arm.rewards, arm.conditioned) == (None, None, True)
    assert [entry.name for kind, entry in manifest.members() if kind == "value"] == ["tuned", "mixed", "judge", "arm"]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('kind = "explicit"', 'kind = "both"', "values[2].kind"),
        ('kind = "explicit"', "", "values[2].kind"),
        ('path = "a"', "", "values[0].path"),
        ('path = "a"', 'path = "a"\nweight = 2', "values[0].weight"),
        ('path = "a"\nobjective = "positive"', 'path = "a"\nobjective = "wit"', "values[0].objective"),
        ('path = "a"\nobjective', 'path = "a"\nrewards = [1.0, 0.0]\nobjective', "values[0].rewards"),
        ("rewards = [0.25, 0.75]", "rewards = [1.0]", "values[1].rewards"),
        ("rewards = [0.25, 0.75]", "rewards = [nan, 0.75]", "values[1].rewards"),
        ("rewards = [0.25, 0.75]", 'rewards = ["a", "b"]', "values[1].rewards"),
        ("rewards = [0.25, 0.75]", "rewards = [0.0, 0.0]", "values[1].rewards"),
        ('base = "small"', 'base = "huge"', "values[1].base"),
        ('base = "small"', 'base = "tuned"', "values[1].base"),
        ("reference = false", 'reference = "no"', "values[1].reference"),
        ('system = "Be kind."', "system = 3", "values[0].system"),
        (JUDGE, 'path = "c"', "values[2].objective"),
        (JUDGE, JUDGE + "\nreference = true", "values[2].reference"),
        (JUDGE, JUDGE + '\nanti = "tuned"', "values[2].anti"),
        (JUDGE, JUDGE + '\nobjectives = ["simple", "positive"]', "values[2].objectives"),
        (ARM, ARM + "reference = true\n", "values[3].reference"),
        (ARM, ARM + 'anti = "tuned"\n', "values[3].anti"),
        (ARM, ARM + 'objectives = ["positive", "wit"]\n', "values[3].objectives"),
        (ARM, ARM + 'objectives = ["positive", "positive"]\n', "values[3].objectives"),
        ('anti = "only-positive"', 'anti = "nobody"', "values[0].anti"),
        ('anti = "only-positive"', 'anti = "tuned"', "values[0].anti"),  # itself
        ('anti = "only-positive"', 'anti = "mixed"', "values[0].anti"),  # of another model
        ('anti = "only-positive"', 'anti = "judge"', "values[0].anti"),  # no language model
        ('anti = "only-positive"', 'anti = "arm"', "values[0].anti"),  # nothing without a preference
        ('anti = "only-positive"', 'anti = "small"', "values[0].anti"),  # a model, not a member
        ('anti = "only-positive"', 'anti = "math"', "values[0].anti"),  # not served
        (MIXED, MIXED + '\nanti = "only-positive"', "values[1].anti"),  # of the base
        (MIXED, MIXED.replace("rewards = [0.25, 0.75]", 'objective = "simple"'), None),
        (MIXED, 'path = "b"\nobjective = "positive"', "second"),
        ('name = "dull"', 'name = "small"', "small"),
        ('name = "dull"', 'name = "tuned"', "tuned"),
        ('name = "dull"', 'name = "du/ll"', "du/ll"),
        ('name = "dull"', 'name = "base"', "base"),
        ('model = "dull"', 'model = ""', "models[1].model"),
        ('model = "dull"', "", "models[1].model"),
        ('model = "dull"', 'model = "dull"\nsize = 1', "models[1].size"),
        ("amateur = true", 'amateur = "yes"', "models[1].amateur"),
        ("amateur = true", 'tokenizer = "small"', "models[1].tokenizer"),
        ('model = "pypi:llm-small"', 'model = "pypi:llm-small"\namateur = true', "amateur"),
    ],
)
def test_what_is_wrong_with_a_value_is_named(tmp_path: Path, old: str, new: str, reason: str | None) -> None:
    assert old in GUIDED
    folder = write(tmp_path, GUIDED.replace(old, new, 1))
    if reason is None:
        load_manifest(folder)
        return
    with pytest.raises(FamilyError) as caught:
        load_manifest(folder)
    assert caught.value.file.endswith("family.toml") and reason in caught.value.reason


def test_one_objective_may_have_a_value_of_every_sort(tmp_path: Path) -> None:
    """Implicit with and without reference, and explicit: each at most once."""
    text = GUIDED.replace(MIXED, 'path = "b"\nobjective = "positive"\nreference = false')
    text = text.replace(JUDGE, JUDGE.replace("simple", "positive"))
    assert [value.objective for value in load_manifest(write(tmp_path, text)).values] == ["positive"] * 3 + [None]
    for line in ('path = "f"\nobjective = "positive"\nreference = false', 'path = "f"\nobjective = "positive"'):
        more = text + f'[[values]]\nname = "more"\nkind = "implicit"\n{line}\n'
        with pytest.raises(FamilyError, match="a second implicit"):
            load_manifest(write(tmp_path, more))
    with pytest.raises(FamilyError, match="a second explicit"):
        load_manifest(
            write(tmp_path, text + '[[values]]\nname = "more"\nkind = "explicit"\npath = "f"\nobjective = "positive"\n')
        )
