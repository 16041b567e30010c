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
            *(finding.warning() for finding in self.barriers if finding.high),
            *(finding.warning() for finding in self.compatibility if not finding.fits),
        )

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON takes it."""
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
                asdict(finding) | {"relative": finding.relative, "verdict": _close(finding)}
                for finding in self.differences
            ],
            "barriers": [asdict(finding) | {"verdict": _connected(finding)} for finding in self.barriers],
            "compatibility": [asdict(finding) | {"verdict": _compatible(finding)} for finding in self.compatibility],
            "skipped": list(self.skipped),
            "warnings": list(self.warnings),
        }

    def tables(self) -> list[Table]:
        """(title, header, rows) of every table that has rows."""
        differences = [
            [
                finding.kind,
                finding.preference,
                f"{finding.mean:.4g}",
                f"{finding.largest:.4g}",
                f"{finding.spread:.4g}",
                "-" if finding.relative is None else f"{finding.relative:.1%}",
                "no" if finding.far else "yes",
            ]
            for finding in self.differences
        ]
        barriers = [
            [
                finding.kind,
                f"{finding.first} - {finding.second}",
                f"{finding.ends[0]:.4g}, {finding.ends[1]:.4g}",
                f"{finding.height:.4g}",
                "-" if finding.at is None else f"{finding.at:g}",
                "no" if finding.high else "yes",
            ]
            for finding in self.barriers
        ]
        fits = [
            [
                finding.kind,
                finding.preference,
                f"{finding.divergence:.4g}",
                f"{finding.largest:.4g}",
                f"{finding.favoured:.1%}",
                f"{finding.outside:.1%}",
                "yes" if finding.fits else "no",
            ]
            for finding in self.compatibility
        ]
        bases = " or ".join(sorted({finding.base for finding in self.compatibility}))
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


def _close(difference: Difference) -> str:
    return "far" if difference.far else "close"


def _connected(barrier: Barrier) -> str:
    return "barrier" if barrier.high else "connected"


def _compatible(compatibility: Compatibility) -> str:
    return "compatible" if compatibility.fits else "incompatible"
