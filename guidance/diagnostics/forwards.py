"""What the models of a family say, under any merge, at every token of the base's own answers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig
from transformers import PreTrainedTokenizerFast as Tokenizer

from ladle.guidance.diagnostics.probe_prompts import render
from ladle.guidance.plan import PromptView
from ladle.merging.bank import gated_layers as gated
from ladle.merging.bank.bank import Bank
from ladle.merging.bank.gated_experts import one_by_one
from ladle.merging.checkpoints.library_lock import loading
from ladle.merging.exceptions import FamilyError, InputError
from ladle.merging.family.family import Family
from ladle.merging.family.family_model import FamilyModel
from ladle.merging.merges.streaming_merge import Merge

_GRID = float(1 << 40)  # coefficients that differ by less are equal: solving for them leaves noise of 1e-16
_KEPT = 2 << 30  # bytes of results


@dataclass(frozen=True)
class State:
    """One set of weights on one view of the prompts.

    Attributes:
        model: "" for the base, or a name of ``[[models]]``.
        coefficients: (member, coefficient), sorted by member, none of them 0.
        view: how it sees the prompts; None as they are.
    """

    model: str
    coefficients: tuple[tuple[str, float], ...]
    view: PromptView | None = None

    @classmethod
    def of(cls, model: str, coefficients: Mapping[str, float], view: PromptView | None = None) -> State:
        """The state of any coefficients by member."""
        snapped = {name: round(value * _GRID) / _GRID for name, value in coefficients.items()}
        return cls(model, tuple(sorted((name, value) for name, value in snapped.items() if value != 0.0)), view)


class Forwards:
    """Whole texts, in float32 and without a KV cache; what was computed once is remembered.

    Low-rank members are weighed in the forward pass, as the server does it. For full-weight members the merged weights
    are made once a set; of those only the latest set stays in memory.

    Attributes:
        prompts: what is asked.
        answers: the base's own greedy answers, token ids, an end of text included.
        vocabulary: token ids that all models have.
    """

    def __init__(self, family: Family, prompts: Sequence[str], length: int) -> None:
        """Load the base and let it answer with ``length`` tokens at most.

        Raises:
            FamilyError: a model cannot be run.
            InputError: ``prompts[i]``: longer than a model's context.
        """
        self.family = family
        self.prompts = tuple(prompts)
        self.vocabulary = min(model.architecture.vocabulary for model in family.models.values())
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.on_forward: Callable[[], None] = lambda: None
        self._plain: dict[str, _Loaded] = {}
        self._merged: tuple[tuple[str, tuple[tuple[str, float], ...]], _Loaded] | None = None
        self._rows: dict[PromptView | None, list[list[int]]] = {}
        self._results: OrderedDict[tuple[State, bool], Tensor] = OrderedDict()
        self._seen: set[tuple[State, bool]] = set()
        self._length = length
        with loading(f"reading the tokenizer of {family.base_path}"):
            self._tokenizer: Tokenizer = AutoTokenizer.from_pretrained(
                family.base_path, local_files_only=True, trust_remote_code=False
            )
        # With the family's own chat template, as the server renders prompts.
        family.conversation.dress(self._tokenizer)
        self.answers = self._answer(self.rows(None))

    def rows(self, view: PromptView | None) -> list[list[int]]:
        """Token ids of the prompts as ``view`` sees them. Raises InputError."""
        if view not in self._rows:
            rows = render(self._tokenizer, self.prompts, view)
            for index, row in enumerate(rows):
                if len(row) > self._longest - self._length:
                    allowed = f"at most {self._longest - self._length} tokens, for {self._length} of an answer"
                    raise InputError(f"prompts[{index}]", f"{len(row)} tokens", allowed)
            self._rows[view] = rows
        return self._rows[view]

    @property
    def answer(self) -> Tensor:
        """[P] int64: the tokens of all answers, one after the other."""
        return torch.tensor([token for answer in self.answers for token in answer])

    def logprobs(self, state: State) -> Tensor:
        """[P, vocabulary] float32 log-softmax before each token of the answers."""
        return self._remembered(state, False)

    def hidden(self, state: State) -> Tensor:
        """[P, hidden] float32 last hidden states, after the final norm, at each token of the answers: of the prefix
        that ends with it."""
        return self._remembered(state, True)

    def _remembered(self, state: State, hidden: bool) -> Tensor:
        key = (state, hidden)
        if key not in self._results:
            result = self._run(state, hidden)
            # What gives no numbers here would give none to a request.
            if not torch.isfinite(result).all():
                mix = ", ".join(f"{name}={value:+.4g}" for name, value in state.coefficients) or "the plain weights"
                raise FamilyError(self.family.models[state.model].base_path, f"{mix}: NaN or infinity on a prompt")
            self._results[key] = result
            # Least recently used first; comparisons and barriers ask for the same states again and again.
            while sum(kept.nbytes for kept in self._results.values()) > _KEPT and len(self._results) > 1:
                self._results.popitem(last=False)
        self._results.move_to_end(key)
        return self._results[key]

    @torch.inference_mode()
    def _run(self, state: State, hidden: bool) -> Tensor:
        loaded = self._loaded(state)
        loaded.gate.open(self._coefficients(state))
        parts = []
        for row, answer in zip(self.rows(state.view), self.answers, strict=True):
            parts.append(self._one(loaded.model, row, answer, hidden).float().cpu())
            if (state, hidden) not in self._seen:
                self.on_forward()
        self._seen.add((state, hidden))
        return torch.cat(parts)

    def _one(self, model: Any, row: Sequence[int], answer: Sequence[int], hidden: bool) -> Tensor:
        ids = torch.tensor([[*row, *answer]], device=self.device)
        if hidden:
            trunk = getattr(model, model.base_model_prefix)
            states: Tensor = trunk(input_ids=ids, use_cache=False).last_hidden_state[0, len(row) :]
            return states
        # The logits in front of each answer token: the last one of the prompt, and all but the last of the answer.
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(answer) + 1).logits[0, :-1]
        return torch.log_softmax(logits[:, : self.vocabulary].float(), dim=-1)

    def _coefficients(self, state: State) -> Tensor | None:
        """[1, members] for the gate: one row that holds for all tokens."""
        low_rank = self.family.models[state.model].low_rank
        mix = dict(state.coefficients)
        if not mix.keys() & low_rank.keys():
            return None
        return torch.tensor([[mix.get(name, 0.0) for name in low_rank]], dtype=torch.float64, device=self.device)

    def _loaded(self, state: State) -> _Loaded:
        model = self.family.models[state.model]
        full = tuple((name, value) for name, value in state.coefficients if name in model.full)
        if not full:
            return self._plain_model(state.model)
        key = (state.model, full)
        if self._merged is None or self._merged[0] != key:
            self._merged = None  # its memory goes before the next one comes
            tensors = dict(Merge.of(model).tensors(dict(full), torch.float32))
            self._merged = key, _load(model, self.device, tensors)
        return self._merged[1]

    def _plain_model(self, name: str) -> _Loaded:
        if name not in self._plain:
            self._plain[name] = _load(self.family.models[name], self.device, None)
        return self._plain[name]

    @property
    def _longest(self) -> int:
        """Positions that every model has."""
        limits = []
        for model in self.family.models.values():
            config: Any = model.architecture.blueprint.config
            limits.append(getattr(config.get_text_config(), "max_position_embeddings", None) or 1 << 30)
        return min(limits)

    @torch.inference_mode()
    def _answer(self, rows: Sequence[Sequence[int]]) -> list[list[int]]:
        """The base's greedy answers, computed side by side."""
        loaded = self._plain_model("")
        loaded.gate.open(None)
        ends = _ends(loaded.model, self._tokenizer)
        pad = ends[0] if ends else 0
        width = max(map(len, rows))
        # Padded on the left, so that all answers begin at one position.
        ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=self.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=self.device)
        greedy = GenerationConfig(
            do_sample=False, max_new_tokens=self._length, eos_token_id=ends or None, pad_token_id=pad
        )
        loaded.model.generation_config = greedy  # its own would add penalties where it has some
        tokens = loaded.model.generate(ids, attention_mask=mask, generation_config=greedy)[:, width:].tolist()
        return [_until_end(row, ends) for row in tokens]


@dataclass(frozen=True)
class _Loaded:
    model: Any
    gate: gated.Gate


def _load(model: FamilyModel, device: torch.device, state: Mapping[str, Tensor] | None) -> _Loaded:
    """The model's plain weights, or ``state`` in their place, gated with its bank."""
    architecture = model.architecture
    own = model.base.tensor if state is None else state.__getitem__
    tied = {name: source for name, source in architecture.tied.items() if state is None or name not in state}
    # The one attention that knows every architecture's caps and sinks.
    loaded = architecture.blueprint.build(own, tied, torch.float32, "eager").to(device)
    if device.type == "cpu":
        one_by_one(loaded)
    bank = Bank(list(model.low_rank.values()))
    return _Loaded(loaded, gated.install(loaded, bank, torch.float32, exact=True))


def _ends(model: Any, tokenizer: Tokenizer) -> list[int]:
    """Every id that ends a text, from the generation config and the tokenizer."""
    ids: set[int] = set()
    for value in (model.generation_config, tokenizer):
        end = getattr(value, "eos_token_id", None)
        ids.update(end if isinstance(end, (list, tuple)) else [] if end is None else [end])
    return sorted(ids)


def _until_end(tokens: Sequence[int], ends: Sequence[int]) -> list[int]:
    end = next((place for place, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return list(tokens[: end + 1])
