"""A transformers model made ready to serve: gated layers, fused norms, attention over the KV pool."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ladle.kernels import ahead, dispatch
from ladle.merging.bank import gated_layers as gated
from ladle.merging.bank.bank import Bank
from ladle.merging.bank.gated_experts import one_by_one
from ladle.merging.bank.tensor_parallel import Link, RankExchange, split_linears
from ladle.merging.checkpoints.architecture import Architecture, open_weights, read_architecture
from ladle.merging.checkpoints.conversion import ConvertedReader
from ladle.merging.members.steering_vector import SteeringVector
from ladle.server.engine.forward.attention import IMPLEMENTATION, PagedContext
from ladle.server.engine.forward.attention_probe import learn_attention
from ladle.server.engine.forward.compiled_stack import compile_layers
from ladle.server.engine.forward.fused_layer import fuse_layers
from ladle.server.engine.forward.layer_vectors import LayerVectors, add_after_layers, layer_paths
from ladle.server.engine.forward.layout import StepLayout
from ladle.server.engine.forward.norms import fuse_norms
from ladle.server.engine.kv.cache import KVShape


@dataclass
class LoadedModel:
    """One set of weights in memory.

    Attributes:
        model: the transformers model, whose linear layers are gated ones.
        gate: the coefficients of the forward that runs.
        kv_shapes: what each layer stores per token.
        nbytes: bytes held: packed products, and what is left plain.
        compiled: whether small steps go through compiled layers.
        vectors: its steering vectors, if it has any.
    """

    model: Any
    gate: gated.Gate
    kv_shapes: list[KVShape]
    nbytes: int
    compiled: bool
    vectors: LayerVectors | None

    @property
    def vocabulary(self) -> int:
        """Number of token ids it has embeddings for, padding included."""
        config: Any = self.model.config
        return int(config.get_text_config().vocab_size)

    def forward(self, layout: StepLayout, context: PagedContext) -> tuple[Tensor, Tensor]:
        """Logits [n, vocabulary] of the rows that ``layout`` wants, in their order, and the last hidden states
        [n + m, hidden], after the final norm: those that they were made of, and those of the m rows that are
        watched."""
        states: list[Tensor] = []
        every: list[Tensor] = []
        # Seen on its way into the output head: what a model does to its logits afterwards is its own affair.
        hooks = [self.model.get_output_embeddings().register_forward_pre_hook(lambda _, x: states.append(x[0]))]
        if layout.watch_indices is not None:
            # Rows that are watched have no logits: their states are taken from the trunk's output, all of which it
            # gives.
            hooks.append(self._trunk.register_forward_hook(lambda _, x, y: every.append(y.last_hidden_state[0])))
        try:
            logits = self._logits(layout, context)
        finally:
            for hook in hooks:
                hook.remove()
        if layout.watch_indices is None:
            return logits, states[0][0]
        return logits, torch.cat((states[0][0], every[0].index_select(0, layout.watch_indices)))

    @property
    def _trunk(self) -> Any:
        return getattr(self.model, self.model.base_model_prefix)

    def _open(self, layout: StepLayout, head_rows: Tensor | None) -> None:
        self.gate.open(layout.coefficients, head_rows)
        if self.vectors is not None:
            self.vectors.open(layout.amounts)

    def _logits(self, layout: StepLayout, context: PagedContext) -> Tensor:
        self._open(layout, layout.logits_indices)
        keep: int | Tensor = 0 if layout.logits_indices is None else layout.logits_indices
        output = self.model(
            input_ids=layout.ids,
            position_ids=layout.positions,
            use_cache=False,
            logits_to_keep=keep,
            paged=context,
        )
        logits: Tensor = output.logits[0]
        return logits

    def hidden(self, layout: StepLayout, context: PagedContext) -> Tensor:
        """Last hidden states [tokens, hidden], after the final norm, of every token of ``layout``."""
        self._open(layout, None)
        output = self._trunk(input_ids=layout.ids, position_ids=layout.positions, use_cache=False, paged=context)
        states: Tensor = output.last_hidden_state[0]
        return states


def load_model(
    folder: Path,
    bank: Bank,
    device: torch.device,
    weights_dtype: torch.dtype,
    activation_dtype: torch.dtype,
    merged: Mapping[str, Tensor] | None = None,
    compiled: bool = False,
    exchange: RankExchange | None = None,
    weights: tuple[ConvertedReader, Architecture] | None = None,
    reproducible: bool = False,
    quantized: bool = False,
    tiled: bool = True,
    kv_dtype: torch.dtype | None = None,
    vectors: Sequence[SteeringVector] = (),
) -> LoadedModel:
    """Put the base in ``folder`` (or the weights ``merged``, which stand in its place) into a copy of its model, and
    gate it with ``bank``. Nothing here is a load of transformers' but for the first one of an architecture.

    Args:
        compiled: take small steps through compiled layers where that can be.
        exchange: the processes that the model is divided among; nothing is exchanged while it loads.
        weights: the base's, where they have been opened already.
        quantized: hold the weights of linear layers in int8, on a CPU.
        tiled: hold them in tiles for compiled loops, on a CPU and where these are the quicker ones. Loops that another
            process compiles are waited for then.
        kv_dtype: of the KV pool that it will run on; None: that of its activations.
        vectors: what may be added to its hidden states, in the order of their coefficients.

    Raises:
        FamilyError: the checkpoint does not fit its config, or the architecture cannot run on the KV pool.
        InputError: it cannot be divided among so many processes.
    """
    config_file = folder / "config.json"
    base, architecture = weights or open_weights(folder, read_architecture(folder))
    # Weights come from the checkpoint, or from a merge that was made for full-weight members.
    own = base.tensor if merged is None else merged.__getitem__
    tied = {name: source for name, source in architecture.tied.items() if merged is None or name not in merged}
    model = architecture.blueprint.build(own, tied, weights_dtype, IMPLEMENTATION)
    # Before it goes to the device, which may not hold all of it.
    link = None if exchange is None else Link(exchange)
    splits = {} if link is None else split_linears(model, link)
    model = model.to(device)
    if device.type == "cpu":
        one_by_one(model)
    # A plain forward shows how each layer attends, and whether the pool can serve it, before anything is replaced.
    attentions = learn_attention(model, config_file)
    steered = layer_paths(model, config_file) if vectors else []
    # Products are exact where float32 promises the same tokens in any batch; bfloat16 may take quicker paths.
    gate = gated.install(
        model,
        bank,
        activation_dtype,
        exact=weights_dtype != torch.bfloat16,
        splits=splits,
        reproducible=reproducible,
        quantized=quantized,
        tiled=tiled,
    )
    # Parameters only: rotary frequencies are float32 buffers, and positions beyond 256 need all their digits.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(activation_dtype)
    # From here on layers are tried: with loops that are compiled in another process while this one reads.
    if tiled:
        ahead.await_code("products")
    fuse_norms(model)
    fuse_layers(model, attentions, activation_dtype)
    added = None
    if vectors:
        # Every process that shares the model has all hidden states between its layers, and adds the whole vector.
        added = LayerVectors(vectors, torch.promote_types(activation_dtype, torch.float32), device)
        add_after_layers(model, steered, added)
    if device.type == "cpu":
        dispatch.prepare_draws(device)
        if tiled:
            ahead.await_code("layers")
    stacked = compiled and not splits and compile_layers(model, activation_dtype, added, kv_dtype)
    if link is not None:
        link.open = True
    plain = sum(parameter.nbytes for parameter in model.parameters()) + (0 if added is None else added.nbytes)
    kv_shapes = [attentions[layer].shape for layer in range(len(attentions))]
    return LoadedModel(model, gate, kv_shapes, plain + gated.nbytes(model), stacked, added)


def context_limit(config: Any, kv_tokens: int) -> int:
    """The longest sequence the model's positions and the KV pool allow.

    A longrope model changes all its frequencies with the longest sequence of a batch; it is served up to its original
    length, where they are constant, so that no request changes another.
    """
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None) or math.inf
    limits: list[float] = [kv_tokens]
    rope = getattr(text, "rope_parameters", None) or {}
    # Rope parameters are one table, or one per type of layer.
    for entry in (rope, *rope.values()):
        if not isinstance(entry, dict):
            continue
        original = entry.get("original_max_position_embeddings")
        if entry.get("rope_type") == "longrope":
            limits.append(original or math.inf)
        elif entry.get("rope_type") == "yarn":
            # Added to a config as model cards tell it, it leaves the number of positions as it was.
            positions = max(positions, (original or positions) * float(entry.get("factor") or 1.0))
    return int(min(*limits, positions))
