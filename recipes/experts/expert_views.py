"""What frozen experts say of given answers: computed once, kept in a file, read by every stage of a router's
training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import track

from ladle.merging.members.adapter import LowRankMember
from ladle.recipes.base_model import LoadedBase
from ladle.recipes.scoring import Encoded, predictions
from ladle.recipes.soup import merged
from ladle.recipes.training.written_whole import written_whole


@dataclass(frozen=True)
class ViewedAnswer:
    """An answer and what every expert predicts at each of its tokens.

    Attributes:
        logprobs: float32 [tokens, experts], log-probabilities of the answer's tokens.
        best: int64 [tokens, experts], each expert's most likely token.
    """

    item: Encoded
    logprobs: torch.Tensor
    best: torch.Tensor

    @property
    def informative(self) -> torch.Tensor:
        """bool [tokens]: the experts' most likely tokens are not all the same one."""
        return informative(self.best)


def informative(best: torch.Tensor) -> torch.Tensor:
    """Positions where the experts disagree, which alone tell who is to be chosen (FusionRoute, arXiv 2601.05106).

    Args:
        best: int64 [tokens, experts], most likely tokens.

    Returns:
        bool [tokens].
    """
    return (best != best[:, :1]).any(dim=-1)


def seen_by(
    base: LoadedBase,
    experts: Mapping[str, LowRankMember],
    items: Sequence[Encoded],
    batch: int,
    files: Mapping[str, Path],
) -> list[ViewedAnswer]:
    """Reads every answer with every expert.

    Args:
        base: restored afterwards, bit for bit.
        experts: by name, in the order of the router's head.
        items: prompts with answers.
        batch: items a forward pass.
        files: a .jsonl file an expert, written when it is done; one that is there is read instead.
    """
    views = [_view(base, experts, name, items, batch, files[name]) for name in experts]
    return [
        ViewedAnswer(
            item,
            torch.tensor([view[index][0] for view in views], dtype=torch.float32).T.contiguous(),
            torch.tensor([view[index][1] for view in views], dtype=torch.long).T.contiguous(),
        )
        for index, item in enumerate(items)
    ]


@torch.inference_mode()
def _view(
    base: LoadedBase, experts: Mapping[str, LowRankMember], name: str, items: Sequence[Encoded], batch: int, file: Path
) -> list[tuple[list[float], list[int]]]:
    """Log-probabilities and most likely tokens of one expert, by item."""
    if not file.exists():
        order = sorted(range(len(items)), key=lambda index: len(items[index].prompt) + len(items[index].answer))
        rows: dict[int, tuple[list[float], list[int]]] = {}
        with merged(base, experts, {name: 1.0}):
            for start in track(range(0, len(items), batch), f"{name} reads {len(items)} answers"):
                chunk = order[start : start + batch]
                predicted = predictions(base.model, [items[index] for index in chunk])
                logprobs, best = predicted.logprobs(), predicted.logits.argmax(-1)
                for row, index in enumerate(chunk):
                    own = predicted.rows == row
                    rows[index] = (logprobs[own].tolist(), best[own].tolist())
        with written_whole(file) as aside:
            aside.write_text("".join(json.dumps(rows[i]) + "\n" for i in range(len(items))), encoding="utf-8")
    lines = file.read_text(encoding="utf-8").splitlines()
    return [(logprobs, best) for logprobs, best in map(json.loads, lines)]
