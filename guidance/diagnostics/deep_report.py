"""What ``ladle check --deep`` found: as data, as JSON, as tables."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ladle.guidance.diagnostics import barrier, comparison, compatibility
from ladle.guidance.diagnostics.barrier import Barrier
from ladle.guidance.diagnostics.comparison import Difference
from ladle.guidance.diagnostics.compatibility import Compatibility

Table = tuple[str, list[str], list[list[str]]]


@dataclass(frozen=True)
class DeepReport:
    """All measurements on one set of prompts.

    Attributes:
        prompts: how many were asked.
        tokens: of all answers, one position each.
        differences: merged against ensembled.
        barriers: of every pair that could be merged.
        compatibility: at the corners and the uniform preference.
        skipped: what could not be measured, and why.
    """

    prompts: int
    tokens: int
    differences: tuple[Difference, ...]
    barriers: tuple[Barrier, ...]
    compatibility: tuple[Compatibility, ...]
    skipped: tuple[str, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """One for each measurement beyond its limit."""
        return (
            *(difference.warning() for difference in self.differences if difference.far),
            *(found.warning() for found in self.barriers if found.high),
            *(found.warning() for found in self.compatibility if not found.fits),
        )

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "prompts": self.prompts,
            "tokens": self.tokens,
            "limits": {
                "difference": comparison.FAR,
                "barrier_nats": barrier.HIGH_NATS,
                "barrier_share": barrier.HIGH_SHARE,
                "divergence": compatibility.FAR_NATS,
                "outside": compatibility.OFTEN_OUTSIDE,
            },
            "differences": [
                asdict(found) | {"relative": found.relative, "verdict": _close(found)} for found in self.differences
            ],
            "barriers": [asdict(found) | {"verdict": _connected(found)} for found in self.barriers],
            "compatibility": [asdict(found) | {"verdict": _compatible(found)} for found in self.compatibility],
            "skipped": list(self.skipped),
            "warnings": list(self.warnings),
        }

    def tables(self) -> list[Table]:
        """(title, header, rows) of every table that has rows."""
        differences = [
            [
                found.kind,
                found.preference,
                f"{found.mean:.4g}",
                f"{found.largest:.4g}",
                f"{found.spread:.4g}",
                "-" if found.relative is None else f"{found.relative:.1%}",
                "no" if found.far else "yes",
            ]
            for found in self.differences
        ]
        barriers = [
            [
                found.kind,
                f"{found.first} - {found.second}",
                f"{found.ends[0]:.4g}, {found.ends[1]:.4g}",
                f"{found.height:.4g}",
                "-" if found.at is None else f"{found.at:g}",
                "no" if found.high else "yes",
            ]
            for found in self.barriers
        ]
        fits = [
            [
                found.kind,
                found.preference,
                f"{found.divergence:.4g}",
                f"{found.largest:.4g}",
                f"{found.favoured:.1%}",
                f"{found.outside:.1%}",
                "yes" if found.fits else "no",
            ]
            for found in self.compatibility
        ]
        bases = " or ".join(sorted({found.base for found in self.compatibility}))
        best = f"outside the base's {compatibility.BEST} best"
        tables: list[Table] = [
            (
                f"merged against ensembled values, {self.tokens} tokens of {self.prompts} answers",
                ["values", "preference", "mean gap", "max", "spread", "of spread", "close"],
                differences,
            ),
            (
                "linear mode connectivity",
                ["values", "pair", "loss at the ends", "barrier", "at", "connected"],
                barriers,
            ),
            (
                f"base ({bases}) and guide; KL in nats a token, tokens {best}",
                ["values", "preference", "KL", "max", "favoured", "picked", "fits"],
                fits,
            ),
            ("not measured", [""], [[line] for line in self.skipped]),
        ]
        return [table for table in tables if table[2]]


def _close(found: Difference) -> str:
    return "far" if found.far else "close"


def _connected(found: Barrier) -> str:
    return "barrier" if found.high else "connected"


def _compatible(found: Compatibility) -> str:
    return "compatible" if found.fits else "incompatible"
