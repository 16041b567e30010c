"""Arguments that the steps of a recipe share."""

from pathlib import Path

import pytest

from ladle.merging.checkpoints.base_checkpoint import default_cache_dir
from ladle.recipes.experts import deferral, route, route_eval
from ladle.recipes.training import amateur, conditioned
from ladle.recipes.training.recipe_arguments import recipe_arguments, recipe_parser


def test_a_recipe_and_where_its_results_are_kept(tmp_path: Path) -> None:
    parser = recipe_parser("training.step", "A step.", out=", with members")
    parser.add_argument("--json", action="store_true")
    arguments, recipe = recipe_arguments(parser, ["--out", str(tmp_path), "--json"], "experts", "router")
    assert recipe.name == "demo" and arguments.json and arguments.out == tmp_path
    assert arguments.work == default_cache_dir() / "recipes" / "demo"
    arguments, _ = recipe_arguments(parser, ["--out", "x", "--work", str(tmp_path)])
    assert arguments.work == tmp_path
    alone = recipe_parser("training.step", "A step.", out=None)
    assert recipe_arguments(alone, ["--config", "quick"])[1].name == "quick"


@pytest.mark.parametrize(
    ("step", "tables"),
    [
        (amateur, "[amateur]"),
        (conditioned, "[conditioned]"),
        (deferral, "[deferral]"),
        (route, "[experts] and [router]"),
        (route_eval, "[experts] and [router]"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_recipe_without_the_step_s_tables_is_refused(
    step: object, tables: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the base is loaded, or anything written."""
    with pytest.raises(SystemExit):
        step.main(["--config", "quick", "--out", "nowhere"])
    text = capsys.readouterr().err
    assert f"--config: 'quick' is not allowed; allowed: a recipe with {tables}" in " ".join(text.split())
    assert step.__name__.removeprefix("ladle.recipes.") in text, "the usage names the module"
