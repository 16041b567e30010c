"""The tensors of a checkpoint under the names that they have in the model.

A checkpoint may name and cut its tensors otherwise than the modules of today's transformers: one tensor per expert
where the model has one for all of them, one for queries, keys and values where it has three. transformers converts them
while it loads; the same conversions are applied here, tensor by tensor and only when one is asked for, so that what is
checked, merged, written and served is one thing under one set of names.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ladle.merging.checkpoints.checkpoint_reader import CheckpointReader
from ladle.merging.exceptions import FamilyError


@dataclass(frozen=True)
class Piece:
    """Tensors of the checkpoint that become weights of the model together.

    Attributes:
        name: the weight, or the first one where there are several.
        sources: (pattern of the transform, name in the checkpoint), in the order in which they are joined.
        transform: transformers' conversion; None where only the name differs.
    """

    name: str
    sources: list[tuple[str, str]] = field(default_factory=list)
    transform: Any = None


class Conversion:
    """What transformers does to the tensors of a checkpoint before they become the weights of ``model``.

    Attributes:
        model: on the meta device; only its names, shapes and config are looked at.
        weights: shape of every weight and stored buffer of the model by name, tied ones included.
        dtypes: their dtypes, likewise.
    """

    def __init__(self, model: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        self.model = model
        # Renamings map one name to one name; converters join, split or turn tensors, and are found by the pattern of
        # what they read.
        self._state: dict[str, Tensor] = dict(model.state_dict())
        self.weights = {name: tuple(tensor.shape) for name, tensor in self._state.items()}
        self.dtypes = {name: tensor.dtype for name, tensor in self._state.items()}
        transforms = get_model_conversion_mapping(model)
        self._renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
        self._converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
        self._of_pattern = {pattern: entry for entry in self._converters for pattern in entry.source_patterns}

    def rename(self, name: str) -> tuple[str, str | None]:
        """The weight that the checkpoint's tensor ``name`` belongs to, and the pattern of its conversion, if any."""
        from transformers.core_model_loading import rename_source_key

        prefix = self.model.base_model_prefix
        renamed, pattern = rename_source_key(name, self._renamings, self._converters, prefix, self._state)
        # A checkpoint may have today's names already, which a rule for old ones may rename into something that is not
        # there.
        if renamed not in self._state and name in self._state:
            renamed, pattern = rename_source_key(name, [], [], prefix, self._state)
        return renamed, pattern

    def transform(self, pattern: str) -> Any:
        """transformers' conversion of the tensors that ``pattern`` names (see ``rename``)."""
        return self._of_pattern[pattern]

    def module(self, path: str) -> str:
        """The path that the linear module ``path`` of an adapter has in the model."""
        if f"{path}.weight" in self._state:
            return path
        renamed, pattern = self.rename(f"{path}.weight")
        return renamed.removesuffix(".weight") if pattern is None and renamed in self._state else path

    def pieces(self, names: Sequence[str]) -> tuple[dict[str, Piece], list[str]]:
        """How the tensors ``names`` of a checkpoint are put together, by their first weight; and those that belong to
        no weight of the model."""
        from transformers.core_model_loading import dot_natural_key

        pieces: dict[str, Piece] = {}
        strangers = []
        # transformers' own order of tensors: parts of one weight are joined in it, expert 2 before expert 10.
        for name in sorted(names, key=dot_natural_key):
            renamed, pattern = self.rename(name)
            if renamed not in self._state:
                strangers.append(name)
                continue
            transform = None if pattern is None else self._of_pattern[pattern]
            piece = pieces.setdefault(renamed, Piece(renamed, transform=transform))
            piece.sources.append((pattern or name, name))
        return pieces, strangers

    def convert(self, piece: Piece, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of ``piece``, from its tensors in the checkpoint by their names there."""
        if piece.transform is None:
            return {piece.name: tensors[piece.sources[0][1]]}
        # transformers' objects collect tensors as they go, so each conversion has its own.
        transform = deepcopy(piece.transform)
        for pattern, source in piece.sources:
            transform.add_tensor(piece.name, source, pattern, tensors[source])
        made = transform.convert(piece.name, model=self.model, config=self.model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    def revert(self, piece: Piece, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of ``piece`` as the checkpoint has them, from the weights that ``convert`` gave. Raises
        ValueError where transformers' conversion cannot be turned round."""
        if piece.transform is None:
            return {piece.sources[0][1]: weights[piece.name]}
        # The same conversion turned round; it counts only if it gives exactly the tensors that the checkpoint had.
        back = piece.transform.reverse_transform()
        first = back.rename_source_key(piece.name)[0]
        for name, weight in weights.items():
            back.add_tensor(first, name, back.rename_source_key(name)[1], weight)
        made = back.convert(first, model=self.model, config=self.model.config)
        values = {name: value[0] if isinstance(value, list) else value for name, value in made.items()}
        by_weight = {self._renamed(source): source for _, source in piece.sources}
        if by_weight.keys() != values.keys():
            raise ValueError(f"{piece.name} gives {', '.join(sorted(values))}")
        return {by_weight[name]: value.contiguous() for name, value in values.items()}

    def _renamed(self, source: str) -> str:
        from transformers.core_model_loading import apply_renamings

        return str(apply_renamings(source, self._renamings))


class ConvertedReader:
    """A checkpoint under the names of its model's weights; a tensor is converted whenever it is asked for.

    Attributes:
        stored: the same checkpoint under its own names.
        strangers: names of its tensors that belong to no weight.

    Raises:
        FamilyError: two tensors mean one weight, or the conversion fails.
    """

    def __init__(self, stored: CheckpointReader, conversion: Conversion) -> None:
        self.stored = stored
        self.conversion = conversion
        pieces, self.strangers = conversion.pieces(stored.names)
        self._pieces: dict[str, Piece] = {}
        self._layout: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        self._own: dict[str, str] = {}  # what the conversion calls a weight that is called otherwise here
        self._shared: set[str] = set()
        for piece in pieces.values():
            self._add(piece)

    def _add(self, piece: Piece) -> None:
        first = piece.sources[0][1]
        # A plain renaming of one tensor; two that end at one name would overwrite each other.
        if piece.transform is None:
            if len(piece.sources) > 1:
                other = piece.sources[1][1]
                raise FamilyError(self.stored.file_of(other), f"means the same weight as the tensor {first}", other)
            self._pieces[piece.name] = piece
            self._layout[piece.name] = self.stored.shape(first), self.stored.dtype(first)
            return
        # On the meta device: what a conversion gives is learned from shapes alone, before anything is read.
        empty = {
            source: torch.empty(self.stored.shape(source), dtype=self.stored.dtype(source), device="meta")
            for _, source in piece.sources
        }
        try:
            made = self.conversion.convert(piece, empty)
        except Exception as error:  # conversions fail in their own ways, for instance where an expert has another shape
            reason = f"cannot be joined with {len(piece.sources) - 1} others into {piece.name}: {_one_line(error)}"
            raise FamilyError(self.stored.file_of(first), reason, first) from error
        for name, tensor in made.items():
            self._pieces[name] = piece
            self._layout[name] = tuple(tensor.shape), tensor.dtype

    @property
    def folder(self) -> Path:
        """The checkpoint's."""
        return self.stored.folder

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all weights that the checkpoint has, sorted."""
        return tuple(sorted(self._pieces))

    @property
    def files(self) -> tuple[Path, ...]:
        """The safetensors files, sorted."""
        return self.stored.files

    def __contains__(self, name: object) -> bool:
        return name in self._pieces

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self._pieces)

    def file_of(self, name: str) -> Path:
        """The file that holds the weight ``name``, or the first part of it."""
        return self.stored.file_of(self.sources(name)[0])

    def sources(self, name: str) -> list[str]:
        """Names in the checkpoint of what the weight ``name`` is made of."""
        return [source for _, source in self._pieces[name].sources]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape, learned from headers alone."""
        return self._layout[name][0]

    def dtype(self, name: str) -> torch.dtype:
        """Dtype, learned from headers alone."""
        return self._layout[name][1]

    def numel(self) -> int:
        """Number of parameters in all weights."""
        return sum(math.prod(shape) for shape, _ in self._layout.values())

    def nbytes(self) -> int:
        """Bytes of all weights in the dtypes of the checkpoint."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self._layout.values())

    def tensor(self, name: str) -> Tensor:
        """The weight ``name``: a view of the memory map where only its name differs, else new memory."""
        # One piece may give several weights: all are made, and one is taken. Views of the memory map cost nothing.
        piece = self._pieces[name]
        made = self.conversion.convert(piece, {source: self.stored.tensor(source) for _, source in piece.sources})
        return made[self._own.get(name, name)]

    def check_finite(self) -> None:
        """Read everything once. Raises FamilyError at the first NaN or infinity."""
        self.stored.check_finite()

    def groups(self) -> list[list[str]]:
        """The weights, those together that are written together (see ``as_stored``); sorted by their first name."""
        # Weights of one piece go back into the checkpoint's tensors together, so that a shard must hold all of them.
        together: dict[int, list[str]] = {}
        for name in self.names:
            together.setdefault(id(self._pieces[name]), []).append(name)
        return list(together.values())

    def as_stored(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One of ``groups`` under the checkpoint's names for it; under its own where there is no way back."""
        piece = self._pieces[next(iter(weights))]
        if not self._shared.isdisjoint(weights):
            return dict(weights)
        try:
            return self.conversion.revert(piece, {self._own.get(name, name): weights[name] for name in weights})
        except (ValueError, KeyError, RuntimeError, NotImplementedError):
            return dict(weights)

    def call(self, name: str, other: str) -> None:
        """Have the weight ``name`` under the name ``other`` instead: what a tied weight is stored as."""
        self._pieces[other] = self._pieces.pop(name)
        self._layout[other] = self._layout.pop(name)
        self._own[other] = self._own.pop(name, name)

    def share(self, name: str, other: str) -> None:
        """Have the weight ``name`` under the name ``other`` as well: a tied one that another checkpoint has apart."""
        self._pieces[other] = replace(self._pieces[name])  # written apart, too: see ``groups``
        self._layout[other] = self._layout[name]
        self._own[other] = self._own.get(name, name)
        self._shared.add(other)


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
