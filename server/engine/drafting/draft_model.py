"""A small language model that draws what comes next as the plan would: with the same random numbers."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch

from ladle.guidance.plan import Source
from ladle.kernels import dispatch
from ladle.merging.exceptions import FamilyError, InputError
from ladle.merging.family.place import MANIFEST_NAME
from ladle.merging.preferences.weights_key import WeightsKey
from ladle.server.engine.drafting.draft_rows import DraftRows, Lack
from ladle.server.engine.engine_config import MOST_DRAFTED, EngineConfig
from ladle.server.engine.forward.attention import PagedContext
from ladle.server.engine.forward.layout import HostLayout, StepLayout
from ladle.server.engine.forward.layout_builder import LayoutBuilder
from ladle.server.engine.forward.loaded_model import context_limit
from ladle.server.engine.kv.cache import KVCache
from ladle.server.engine.kv.lane_table import LaneTable
from ladle.server.engine.requests.sequence import Lane, Sequence
from ladle.server.engine.schedule.model_guesses import ModelGuesses
from ladle.server.engine.schedule.step_plan import Chunk
from ladle.server.engine.scores.sampler import Sampler
from ladle.server.engine.served_models import ServedModels

_WINDOW = 256
"""Tokens of a text that the model looks at, unless the family says it or the model reads less."""


@dataclass(frozen=True)
class _Extract(Chunk):
    """A chunk that says its tokens itself: a row's text begins somewhere in the middle of its sequence's."""

    tokens: tuple[int, ...] = ()

    @property
    def ids(self) -> list[int]:
        return list(self.tokens)


class DraftModel:
    """Guesses at what sequences draw. For the engine's thread.

    It draws with the counter-based random numbers of the position that it guesses at, and the request's own sampling
    parameters, penalties among them: guess and draw are two outcomes of one noise, equal as often as the two
    distributions let them be, nearly (the Gumbel coupling; Daliri, Musco and Suresh, arXiv 2408.07978, draw drafts so).
    What a grammar, a thought's budget or a least length rule out, it does not know.

    It keeps state of its own, one row for each slot, of the last ``window`` tokens of a text at most, in a pool that no
    plan's lanes share.
    """

    def __init__(self, models: ServedModels, sampler: Sampler, config: EngineConfig) -> None:
        """Raises InputError where the family names no draft model, FamilyError where it cannot read as much."""
        table = models.family.manifest.speculation
        if table is None:
            reason = 'the family names no draft model; write [speculation] model = "NAME" into its family.toml, NAME '
            reason += "an entry of [[models]]"
            raise InputError("speculate", f"model:{config.model_draft_tokens}", reason=reason)
        name, slots = table.model, config.max_sequences
        self._model = model = models.whole(name)
        limit = context_limit(model.model.config, _WINDOW + MOST_DRAFTED if table.window is None else 1 << 30)
        window = limit - MOST_DRAFTED if table.window is None else table.window
        most = window + MOST_DRAFTED
        if not MOST_DRAFTED <= window <= limit - MOST_DRAFTED:
            known = f"{window} tokens and {MOST_DRAFTED} guesses are more than the {limit} that {name!r} reads"
            raise FamilyError(models.family.root / MANIFEST_NAME, f"speculation.window: {known}")
        self._rows = DraftRows(slots, window)
        self._sampler = sampler
        self._vocabulary = models.vocabulary
        self._widened = models.reproducible and models.activation_dtype == torch.bfloat16
        # The bank's columns are those of every table that the model's gates read; nobody's coefficients are in it.
        self._table = LaneTable(slots, most, models.members, models.score_dtype, models.device, models.vectors)
        each = self._table.blocks.shape[1]
        self._cache = KVCache(
            model.kv_shapes, 1 + slots * each, config.resolve_kv_dtype(models.device), models.device
        )  # block 0 is nobody's
        self._table.blocks[:] = 1 + np.arange(slots * each).reshape(slots, each)
        self._layouts = LayoutBuilder(self._table, together=dispatch.on_gpu(self._table.coefficients))
        self._arange = torch.arange(self._layouts.most_keys, device=models.device)
        self._lanes = []
        for slot in range(slots):
            lane = Lane(Source(name, "draft", 1.0, (), model=name), WeightsKey.of(name, {}), (), frozenset())
            lane.row = slot
            self._lanes.append(lane)

    @property
    def held(self) -> int:
        """Rows of sequences that have a slot."""
        return self._rows.held

    def lacks(self, sequence: Sequence) -> int:
        """Tokens that are to be read before it can guess."""
        return len(self._rows.lack(sequence).tokens)

    @torch.inference_mode()
    def read(self, sequences: Seq[Sequence]) -> None:
        """Read what it lacks of the texts of ``sequences``, all but the last token of each."""
        lacks = {sequence: self._rows.lack(sequence) for sequence in sequences}
        lacks = {sequence: lack for sequence, lack in lacks.items() if len(lack.tokens) > 1}
        if not lacks:
            return
        layout = self._lay_out(lacks, keep_back=1)
        sent = layout.send(self._table, self._arange)
        self._model.hidden(sent, self._context(sent))
        for sequence, lack in lacks.items():
            self._rows.computed(sequence, lack, len(lack.tokens) - 1)

    @torch.inference_mode()
    def guess(self, sequences: Seq[Sequence], guessed: Seq[Seq[int]]) -> list[tuple[int, float]]:
        """The token that each of ``sequences``, at least one, would draw after its text and what was ``guessed`` of it,
        were the draft model the plan; and how likely that token is, 0 to 1, before penalties and temperature."""
        lacks = {
            sequence: self._rows.lack(sequence, behind) for sequence, behind in zip(sequences, guessed, strict=True)
        }
        layout = self._lay_out(lacks, keep_back=0)
        sent = layout.send(self._table, self._arange)
        logits, _ = self._model.forward(sent, self._context(sent))
        for sequence, lack in lacks.items():
            self._rows.computed(sequence, lack, len(lack.tokens))
        # Rows of the layout are in an order of its own.
        rows = {int(slot): index for index, slot in enumerate(layout.logit_table_rows)}
        logits_rows = np.array([rows[lacks[sequence].slot] for sequence in sequences])
        return self._sampler.foresee(logits[:, : self._vocabulary], logits_rows, sequences, guessed)

    def _lay_out(self, lacks: dict[Sequence, Lack], keep_back: int) -> HostLayout:
        """The forward over what rows lack, but for the last ``keep_back`` tokens; logits where none is kept back."""
        table, single, chunks = self._table, [], []
        for sequence, lack in lacks.items():
            lane, tokens = self._lanes[lack.slot], lack.tokens[: len(lack.tokens) - keep_back]
            if lack.fresh:
                # What the last text left there is masked, but a NaN of it would not be harmless.
                self._cache.clear(table.blocks[lack.slot].tolist())
            table.computed[lack.slot] = lack.kept
            if len(tokens) == 1 and not keep_back:
                table.last[lack.slot] = tokens[0]
                single.append(lane)
            else:
                chunks.append(
                    _Extract(sequence, lane, lack.kept, len(tokens), final=not keep_back, tokens=tuple(tokens))
                )
        return self._layouts.build(single, chunks)

    def _context(self, layout: StepLayout) -> PagedContext:
        return PagedContext(self._cache, layout.slot_mapping, layout.groups, layout.token_blocks, self._widened)


def model_guesses(models: ServedModels, sampler: Sampler, config: EngineConfig) -> ModelGuesses | None:
    """The guesses of the family's draft model; None where ``config`` asks for none. Raises what ``DraftModel``
    raises."""
    if not config.model_draft_tokens:
        return None
    return ModelGuesses(DraftModel(models, sampler, config), config.model_draft_tokens)
