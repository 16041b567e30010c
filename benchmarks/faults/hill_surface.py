"""A response surface that is simple enough to check by eye, for families whose members are random."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ladle.merging.family.manifest import load_manifest
from ladle.merging.family.measurement_file import fingerprint_of, write_measured
from ladle.merging.family.surface import SURFACE_NAME, Surface, folders_of, quadratic


def hill_surface(objectives: Sequence[str], members: Sequence[str], fingerprint: str = "") -> Surface:
    """The reward of each objective is best at a coefficient of 1.5 of its own member and none of the others, and falls
    with the square of the distance from there; measured from 0 to 2."""
    n = len(members)
    corners = np.array(np.meshgrid(*[[0.0, 2.0]] * n)).reshape(n, -1).T
    design = np.vstack([corners, np.eye(n), 0.5 + 0.5 * np.eye(n), 1.5 * np.eye(n)])
    # 3 - |c - centre|^2, from its values: quadratic() says in which order the weights stand.
    rows = quadratic(design)
    centres = 1.5 * np.eye(n)
    heights = {
        name: np.linalg.pinv(rows) @ (3 - ((design - centre) ** 2).sum(axis=1))
        for name, centre in zip(objectives, centres, strict=True)
    }
    return Surface(
        fingerprint=fingerprint,
        members=list(members),
        sampling={"temperature": 0.8},
        answers=100,
        design=design.tolist(),
        rewards={name: weights.tolist() for name, weights in heights.items()},
        surprise=[0.0, *[0.1] * n, *[0.0] * (rows.shape[1] - n - 1)],
        most_surprise=1.0,
        explained=dict.fromkeys([*objectives, "surprise"], 0.9),
    )


def write_hill_surface(root: Path) -> None:
    """Leave one of the backbones beside the family.toml in ``root``."""
    manifest = load_manifest(root)
    members = [backbone.name for backbone in manifest.backbones]
    fingerprint = fingerprint_of(folders_of(manifest, root, members))
    write_measured(hill_surface(manifest.objectives, members, fingerprint), root / SURFACE_NAME)
