"""How far Bone Soup may be extrapolated: pure preferences at several factors, on the validation split.

The factors a family ends up with stand in its recipe; this command prints what they were chosen from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from ladle.merging.preferences.coefficients import bone_soup
from ladle.merging.preferences.preference import Preference
from ladle.recipes.config import Recipe
from ladle.recipes.training.evaluate import Mixture, summarise
from ladle.recipes.training.pairs import Scale
from ladle.recipes.training.recipe_arguments import recipe_arguments, recipe_parser
from ladle.recipes.training.train import Workshop


def corner_settings(recipe: Recipe, factors: Sequence[float]) -> list[Mixture]:
    """The base, then Bone Soup (arXiv 2502.10762) at every pure preference, coefficients times each factor k."""
    names = recipe.objectives
    settings = [Mixture("base", (), {})]
    for index, name in enumerate(names):
        for factor in factors:
            preference = Preference.of({name: 1.0}, names)
            mix = bone_soup(preference, recipe.matrix(), [f"bone-{n}" for n in names], {name: factor})
            weights = tuple(float(weight) for weight in np.eye(len(names))[index])
            settings.append(Mixture(f"k={factor:g}", weights, dict(zip(mix.members, mix.values, strict=True))))
    return settings


def main(argv: Sequence[str] | None = None) -> int:
    """Prints one line a corner and factor; returns the exit status."""
    example = "--config demo --factors 1 1.25 1.5"
    parser = recipe_parser("training.tune", __doc__ or "", out=None, example=example)
    parser.add_argument("--factors", type=float, nargs="+", default=[1.0, 1.25, 1.5])
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments, recipe = recipe_arguments(parser, argv)
    workshop = Workshop.open(recipe, arguments.work)
    pool = workshop.pool()
    scale = Scale.of(pool)
    settings = corner_settings(recipe, arguments.factors)
    answers = workshop.judge(workshop.members(pool, scale), "validation", settings)
    rows = summarise(settings, answers, recipe.objectives, scale, recipe.evaluation)
    if arguments.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items() if not key.endswith(("_low", "_high"))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
