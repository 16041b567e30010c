"""The samples of a sweep: a CSV that grows as answers come, so that a sweep that was stopped goes on where it was."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladle.recipes.sweeps.grid import Setting, setting_of

# Everything is quoted: a text may hold line ends of any kind.
_STYLE: dict[str, Any] = {"lineterminator": "\n", "quoting": csv.QUOTE_ALL}
SAMPLES, ASKED = "samples.csv", "sweep.json"
PACKED = "samples.csv.gz"
"""The samples of a sweep that is finished, compressed by its owner; one that goes on has them plain again."""


@dataclass(frozen=True)
class Sample:
    """One answer with what was measured on it.

    Attributes:
        setting: key of its setting.
        prompt: number of the prompt in the sweep's list. number: of the answer among those to this prompt and setting.
        seed: of the request: the same for every setting, so that methods differ by nothing else.
        tokens: of the answer, its end included.
        base_logprob: of the answer under the plain base, nats; None if it was not asked for.
        rewards: by objective.
    """

    setting: str
    prompt: int
    number: int
    seed: int
    text: str
    tokens: int
    finish_reason: str
    base_logprob: float | None
    rewards: Mapping[str, float]

    @property
    def key(self) -> tuple[str, int, int]:
        return self.setting, self.prompt, self.number


class SampleStore:
    """The folder of one sweep."""

    def __init__(self, folder: Path, asked: Mapping[str, Any], objectives: Sequence[str]) -> None:
        """Open or begin it.

        Args:
            asked: everything that the samples depend on; a folder of a sweep that asked for something else is refused.

        Raises:
            ValueError: see ``asked``; it names what differs.
        """
        self.folder = folder
        self._objectives = list(objectives)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / ASKED
        if file.exists():
            before = json.loads(file.read_text(encoding="utf-8"))
            now = json.loads(json.dumps(asked))
            for name in dict.fromkeys([*before, *now]):
                if before.get(name) != now.get(name):
                    allowed = f"{before.get(name)!r}, with which the sweep in {folder} was begun, or another --out"
                    raise ValueError(f"{name}: {now.get(name)!r} is not allowed; allowed: {allowed}")
        else:
            file.write_text(json.dumps(asked, indent=2) + "\n", encoding="utf-8")
        self.samples: dict[tuple[str, int, int], Sample] = {sample.key: sample for sample in self._read()}

    @property
    def _fields(self) -> list[str]:
        plain = ["setting", "prompt", "number", "seed", "finish_reason", "tokens", "base_logprob"]
        return [*plain, *(f"reward_{name}" for name in self._objectives), "text"]

    def add(self, sample: Sample) -> None:
        """Keep a sample, on disk before anything else."""
        path = self.folder / SAMPLES
        packed = self.folder / PACKED
        if packed.exists() and not path.exists():
            path.write_bytes(gzip.decompress(packed.read_bytes()))
            packed.unlink()
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._fields, **_STYLE)
            if new:
                writer.writeheader()
            row = {name: getattr(sample, name) for name in self._fields if not name.startswith("reward_")}
            row["base_logprob"] = "" if sample.base_logprob is None else repr(sample.base_logprob)
            row |= {f"reward_{name}": repr(sample.rewards[name]) for name in self._objectives}
            writer.writerow(row)
        self.samples[sample.key] = sample

    def _read(self) -> list[Sample]:
        path, packed = self.folder / SAMPLES, self.folder / PACKED
        if not path.exists():
            if not packed.exists():
                return []
            with gzip.open(packed, "rt", newline="", encoding="utf-8") as file:
                return [self._sample(row) for row in csv.DictReader(file)]
        # Stopped in the middle of a character, there is none to be read.
        text = path.read_bytes().decode("utf-8", errors="ignore")
        if not text.endswith("\n") or text.count('"') % 2:
            # Stopped in the middle of a row, which is then asked for again. Quoted texts may hold line breaks, so what
            # is cut is the last row and not the last line, and the end of a line may be within one.
            rows = list(csv.reader(io.StringIO(text, newline="")))[:-1]
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file, **_STYLE).writerows(rows)
        with path.open(newline="", encoding="utf-8") as file:
            return [self._sample(row) for row in csv.DictReader(file)]

    def _sample(self, row: Mapping[str, str]) -> Sample:
        return Sample(
            row["setting"],
            int(row["prompt"]),
            int(row["number"]),
            int(row["seed"]),
            row["text"],
            int(row["tokens"]),
            row["finish_reason"],
            float(row["base_logprob"]) if row["base_logprob"] else None,
            {name: float(row[f"reward_{name}"]) for name in self._objectives},
        )


def reopen(folder: Path) -> tuple[SampleStore, dict[str, Any], list[Setting]]:
    """A sweep that is there: its samples, what it asked for, and its settings.

    Raises:
        ValueError: there is none in ``folder``.
    """
    file = folder / ASKED
    if not file.exists():
        raise ValueError(f"sweep: {str(folder)!r} is not allowed; allowed: the folder of a sweep (it has a {ASKED})")
    asked = json.loads(file.read_text(encoding="utf-8"))
    return SampleStore(folder, asked, asked["objectives"]), asked, [setting_of(key) for key in asked["settings"]]
