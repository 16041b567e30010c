"""Every model of a family, loaded: the base and further ones, their banks, KV pools and merged weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

from ladle.guidance.plan import Plan, Routing, Source
from ladle.merging.bank.bank import Bank
from ladle.merging.exceptions import InputError
from ladle.merging.family.family import Family
from ladle.merging.merges.streaming_merge import Merge
from ladle.merging.preferences.weights_key import WeightsKey
from ladle.server.engine.device.device import beside_steps
from ladle.server.engine.engine_config import EngineConfig
from ladle.server.engine.forward.loaded_model import LoadedModel, context_limit, load_model
from ladle.server.engine.kv.cache import BLOCK_SIZE, KVCache, KVShape
from ladle.server.engine.ranks.broadcast import BroadcastCache, BroadcastModel
from ladle.server.engine.ranks.process_group import ProcessGroup
from ladle.server.engine.ranks.ranks import Ranks
from ladle.server.engine.requests.lane_head import LaneHead
from ladle.server.engine.requests.request import GenerationRequest
from ladle.server.engine.requests.sequence import Lane
from ladle.server.engine.scores.expert_router import ExpertRouter
from ladle.server.engine.weights_store import WeightsStore

logger = logging.getLogger(__name__)

_FEWEST_BLOCKS = 8


class ServedModels:
    """All models of a family as an engine serves them.

    Attributes:
        names: "" for the base, then those of ``[[models]]``.
        caches: the KV pool of each; a block id means the same place in all of them, so that one block manager serves
            any lane.
        plain: the key of the weights of each as they were loaded.
        vocabulary: the number of token ids that they have in common; sizes differ by padding only.
        router: of the family, if it has one.
        router_model: the model whose hidden states the router reads.
        members: the columns of a coefficient row, over all models.
        vectors: the last of these, which are of the base's steering vectors.
    """

    def __init__(
        self,
        family: Family,
        config: EngineConfig,
        device: torch.device,
        in_use: Callable[[], Iterable[WeightsKey]],
        group: ProcessGroup | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Load the models and reserve the KV pools.

        Args:
            in_use: the keys of the weights that running sequences need.
            group: the processes that share the models; each loads its part.
            ranks: of the engine's process: the others, which are to do what is done here.

        Raises:
            FamilyError, InputError.
        """
        full = next((name for model in family.models.values() for name in model.full), None)
        if config.quantize != "none" and full is not None:
            reason = f"{full} has full weights; low-rank members (ladle compress) keep theirs"
            raise InputError("quantize", config.quantize, reason=reason)
        self.family = family
        self.device = device
        self._ranks = ranks
        self._config = config
        self._group = group
        self._weights_dtype, self.activation_dtype = config.resolve_dtypes(device)
        activation_dtype, self._kv_dtype = self.activation_dtype, config.resolve_kv_dtype(device)
        self.reproducible = config.reproducible
        self.score_dtype = torch.promote_types(activation_dtype, torch.float32)
        self._expert_schedule = config.expert_schedule
        self.names = tuple(family.models)
        self.members = tuple(name for model in family.models.values() for name in model.low_rank)
        self.vectors = tuple(family.vectors)
        self._bank = frozenset((*self.members, *self.vectors))
        self._name_of = {self._revision(name): name for name in self.names}
        # The weights as they are loaded, one set per model: the base with its bank of low-rank members, then the
        # others.
        plain = {key: self.build(key) for key in (WeightsKey.of(revision, {}) for revision in self._name_of)}
        self.plain = dict(zip(self.names, plain, strict=True))
        self.base = plain[self.plain[""]]
        self.router, self.router_model = None, ""
        if family.router is not None:
            self.router_model = family.router.model
            self.router = ExpertRouter(family.router.head, self.score_dtype, device)
        self.vocabulary = min(model.vocabulary for model in plain.values())
        shapes = [model.kv_shapes for model in plain.values()]
        # A block id means the same place in every pool, so a block costs the sum over the models.
        per_block = sum(KVCache.bytes_per_block(layers, self._kv_dtype) for layers in shapes)
        self.blocks = config.kv_memory // per_block
        if self.blocks < _FEWEST_BLOCKS:
            allowed = f"at least {_FEWEST_BLOCKS * per_block} bytes ({_FEWEST_BLOCKS} blocks of {BLOCK_SIZE} tokens)"
            raise InputError("kv_memory", config.kv_memory, allowed)
        # The shortest context of all models: one request may need each of them. One block is padding and holds nobody's
        # tokens.
        limits = [context_limit(model.model.config, (self.blocks - 1) * BLOCK_SIZE) for model in plain.values()]
        self.max_context = min(limits)
        if config.max_context is not None:
            if config.max_context > self.max_context:
                raise InputError("max_context", config.max_context, f"at most {self.max_context}")
            self.max_context = config.max_context
        self.caches = {name: self._cache(name, layers) for name, layers in zip(self.names, shapes, strict=True)}
        note = None
        if ranks is not None:
            ranks.agree(self.facts())
            note = ranks.merge
        self.store = WeightsStore(plain, self.build, config.weights_memory, in_use, note)

    @classmethod
    def shared(
        cls,
        family: Family,
        config: EngineConfig,
        device: torch.device,
        in_use: Callable[[], Iterable[WeightsKey]],
        on_lost: Callable[[], None],
    ) -> ServedModels:
        """Served models over as many processes as ``config`` says; ``on_lost``: see ``Ranks``. Raises RankLost too."""
        if config.tensor_parallel == 1:
            return cls(family, config, device, in_use)
        ranks = Ranks(family, config, device, on_lost)
        try:
            return cls(family, config, device, in_use, ranks.group, ranks)
        except BaseException:
            ranks.close()
            raise

    def require_all(self) -> None:
        """Raise RankLost if a process that shares the models is gone or out of step."""
        if self._ranks is not None:
            self._ranks.require_all()

    def leave(self) -> None:
        """End the processes that share the models."""
        if self._ranks is not None:
            self._ranks.close()

    def close(self) -> None:
        """End what runs beside the engine's thread."""
        self.store.close()
        self.leave()

    def build(self, key: WeightsKey) -> LoadedModel:
        """Load the weights ``key``, merging what has full weights. From any thread; some seconds of work."""
        with beside_steps(self.device):
            return self._build(key)

    def whole(self, name: str) -> LoadedModel:
        """The plain weights of model ``name`` for this process alone: those that are there, unless every forward of
        them is one of several processes."""
        key = self.plain[name]
        return self.store.models[key] if self._ranks is None else self._loader(key)(exchange=None)

    def _loader(self, key: WeightsKey) -> Callable[..., LoadedModel]:
        """Loads the weights ``key``; what is left to say is among which processes."""
        model = self.family.models[self._name_of[key.base_revision]]
        # Full-weight members are merged into fresh tensors; low-rank ones stay factored in the bank.
        merged = dict(Merge.of(model).tensors(key.coefficients(), self._weights_dtype)) if key.terms else None
        return partial(
            load_model,
            model.base_path,
            Bank(list(model.low_rank.values()), self.members),
            self.device,
            self._weights_dtype,
            self.activation_dtype,
            merged,
            self._config.compiled_layers and self._config.compiled_products,
            weights=(model.base, model.architecture),
            reproducible=self._config.reproducible,
            quantized=self._config.quantize == "int8",
            tiled=self._config.compiled_products,
            kv_dtype=self._kv_dtype,
            vectors=tuple(model.vectors.values()),
        )

    def _build(self, key: WeightsKey) -> LoadedModel:
        name, load = self._name_of[key.base_revision], self._loader(key)
        try:
            loaded = load(exchange=self._group)
        except InputError as error:
            if not name:
                raise
            # A further model is a small one as a rule: each process may as well have all of it.
            logger.info("model %r is not divided: %s", name, error)
            loaded = load(exchange=None)
        return loaded if self._ranks is None else BroadcastModel.of(loaded, name, key, self._ranks)

    def _cache(self, name: str, layers: list[KVShape]) -> KVCache:
        pool = (layers, self.blocks, self._kv_dtype, self.device)
        return KVCache(*pool) if self._ranks is None else BroadcastCache(*pool, name, self._ranks)

    def facts(self) -> dict[str, Any]:
        """What processes that share the models must have in common."""
        members = [*self.members, *self.vectors]
        return {"models": [self._revision(n) for n in self.names], "members": members, "blocks": self.blocks}

    def lanes(self, request: GenerationRequest) -> list[Lane]:
        """Fresh lanes for the sources of a request, those that watch what it writes last. Raises InputError for a view
        of the prompt that is not there."""
        plan = request.plan
        # Lanes of the plan's sources in their order, then those that watch; an answer of no tokens needs no watching.
        watching = plan.watching if request.sampling.max_tokens else ()
        lanes = [
            Lane(
                source,
                self._weights(source),
                _prompt(request, source),
                self._bank,
                LaneHead.of(source, self.family.heads, self.score_dtype, self.device),
                request.salt,
                watches=index >= len(plan.sources),
            )
            for index, source in enumerate((*plan.sources, *watching))
        ]
        if request.plan.routing is not None:
            self._schedule_experts(lanes, request.plan.routing)
        return lanes

    def _schedule_experts(self, lanes: list[Lane], routing: Routing) -> None:
        """Mark the experts that wait until they are chosen (see ``EngineConfig.expert_schedule``).

        An expert whose weights are those of a lane that runs in every step anyway, its bank coefficients aside, costs
        a row of that forward, and reading weights is what a step of few rows costs. With weights of its own it costs
        a forward per token, unless it waits; it then computes no more tokens than it would have, and many at once.
        """
        # ``always``: the weight sets that run at every token anyway, the router's among them.
        experts = set(routing.experts)
        always = {lane.materialised for index, lane in enumerate(lanes) if index not in experts}
        for index in experts:
            own = lanes[index].materialised not in always
            lanes[index].lazy = own if self._expert_schedule == "auto" else self._expert_schedule == "lazy"

    def merged_sets(self, plan: Plan) -> dict[WeightsKey, int]:
        """Bytes of the sets of merged full weights that ``plan`` needs at once."""
        sources = (*plan.sources, *plan.watching)
        # Lanes split off what the bank carries: of a plan with low-rank members alone nothing is left to be merged.
        keys = {Lane(source, self._weights(source), (), self._bank).materialised for source in sources}
        return {key: self.store.set_nbytes(key) for key in keys if not self.store.is_plain(key)}

    def _weights(self, source: Source) -> WeightsKey:
        return WeightsKey.of(self._revision(source.model), dict(source.coefficients))

    def _revision(self, name: str) -> str:
        """Identity of a model's plain weights. The name takes part: each model has its own bank and KV pool."""
        revision = self.family.models[name].base_revision
        return f"{revision}@{name}" if name else revision


def _prompt(request: GenerationRequest, source: Source) -> tuple[int, ...]:
    try:
        return request.prompt_of(source)
    except KeyError:
        reason = f"the prompt as source {source.name} sees it is missing: {source.view}"
        raise InputError("views", None, reason=reason) from None
