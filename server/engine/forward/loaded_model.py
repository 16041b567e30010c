"""A transformers model made ready to serve: gated layers, fused norms, attention over the KV pool."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

from ladle.merging.bank import gated_layers as gated
from ladle.merging.bank.bank import Bank
from ladle.merging.bank.tensor_parallel import Exchange, Link, split_linears
from ladle.merging.errors import FamilyError
from ladle.server.engine.forward.attention import IMPLEMENTATION, AttentionProbe, LayerAttention, PagedContext
from ladle.server.engine.forward.compiled_stack import compile_layers
from ladle.server.engine.forward.fused_layer import fuse_layers
from ladle.server.engine.forward.layout import StepLayout
from ladle.server.engine.forward.norms import fuse_norms
from ladle.server.engine.kv.cache import KVShape


@dataclass
class LoadedModel:
    """One set of weights in memory. ``nbytes`` counts packed products and what is left plain."""

    model: Any
    gate: gated.Gate
    kv_shapes: list[KVShape]
    nbytes: int

    @property
    def vocabulary(self) -> int:
        """Number of token ids it has embeddings for, padding included."""
        config: Any = self.model.config
        return int(config.get_text_config().vocab_size)

    def forward(self, layout: StepLayout, context: PagedContext) -> tuple[Tensor, Tensor]:
        """Logits [n, vocabulary] of the rows that ``layout`` wants, in their order, and the last hidden states
        [n, hidden], after the final norm, that they were made of."""
        states: list[Tensor] = []
        # Seen on its way into the output head: what a model does to its logits afterwards is its own affair.
        hook = self.model.get_output_embeddings().register_forward_pre_hook(lambda _, x: states.append(x[0]))
        try:
            logits = self._logits(layout, context)
        finally:
            hook.remove()
        return logits, states[0][0]

    def _logits(self, layout: StepLayout, context: PagedContext) -> Tensor:
        self.gate.open(layout.coefficients, layout.logit_rows)
        keep: int | Tensor = 0 if layout.logit_rows is None else layout.logit_rows
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
        self.gate.open(layout.coefficients, None)
        trunk = getattr(self.model, self.model.base_model_prefix)
        output = trunk(input_ids=layout.ids, position_ids=layout.positions, use_cache=False, paged=context)
        states: Tensor = output.last_hidden_state[0]
        return states


def load_model(
    folder: Path,
    bank: Bank,
    device: torch.device,
    weights_dtype: torch.dtype,
    activation_dtype: torch.dtype,
    state: Mapping[str, Tensor] | None = None,
    compiled: bool = False,
    exchange: Exchange | None = None,
) -> LoadedModel:
    """Load the base in ``folder`` (or the weights ``state``, which stand in its place) and gate it with ``bank``.

    ``compiled``: take small steps through compiled layers where that can be. ``exchange``: the processes that the model
    is divided among; nothing is exchanged while it loads.

    Raises:
        FamilyError: the architecture cannot run on the KV pool.
        InputError: it cannot be divided among so many processes.
    """
    config_file = folder / "config.json"
    model: Any
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        architecture: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        model = architecture.from_pretrained(
            folder if state is None else None,
            config=config,
            state_dict=None if state is None else dict(state),
            dtype=weights_dtype,
            attn_implementation=IMPLEMENTATION,
            local_files_only=True,
        )
    except (ValueError, KeyError) as error:
        raise FamilyError(config_file, f"this architecture cannot be served: {error}") from error
    model = model.eval().requires_grad_(False)
    # Before it goes to the device, which may not hold all of it.
    link = None if exchange is None else Link(exchange)
    splits = {} if link is None else split_linears(model, link)
    model = model.to(device)
    attentions = _attentions(model, config_file)
    # Products are exact where float32 promises the same tokens in any batch; bfloat16 may take quicker paths.
    gate = gated.install(model, bank, activation_dtype, exact=weights_dtype != torch.bfloat16, splits=splits)
    # Parameters only: rotary frequencies are float32 buffers, and positions beyond 256 need all their digits.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(activation_dtype)
    fuse_norms(model)
    fuse_layers(model, attentions, activation_dtype)
    copies = compile_layers(model) if compiled and not splits else 0
    if link is not None:
        link.open = True
    plain = sum(parameter.nbytes for parameter in model.parameters())
    kv_shapes = [attentions[layer].shape for layer in range(len(attentions))]
    return LoadedModel(model, gate, kv_shapes, plain + copies + gated.nbytes(model))


@torch.inference_mode()
def _attentions(model: Any, config_file: Path) -> dict[int, LayerAttention]:
    """How each layer attends and what it stores, learned by running two tokens."""
    text = model.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if kinds or not getattr(model, "_supports_attention_backend", False):
        reason = f"layers of type {', '.join(sorted(kinds))}" if kinds else "its attention cannot be replaced"
        raise FamilyError(config_file, f"this architecture cannot be served: {reason}")
    probe = AttentionProbe()
    ids = torch.zeros(1, 2, dtype=torch.int64, device=model.device)
    model(input_ids=ids, use_cache=False, paged=probe)
    if probe.sinks:
        raise FamilyError(config_file, "this architecture cannot be served: its layers have attention sinks")
    layers = text.num_hidden_layers
    if sorted(probe.layers) != list(range(layers)):
        reason = f"only {len(probe.layers)} of {layers} layers attend"
        raise FamilyError(config_file, f"this architecture cannot be served: {reason}")
    for layer, attention in probe.layers.items():
        if attention.shape.head_dim != probe.value_dims[layer]:
            raise FamilyError(config_file, "this architecture cannot be served: keys and values differ in size")
    return probe.layers


def context_limit(config: Any, kv_tokens: int) -> int:
    """The longest sequence the model's positions and the KV pool allow.

    A longrope model changes all its frequencies with the longest sequence of a batch; it is served up to its original
    length, where they are constant, so that no request changes another.
    """
    text = config.get_text_config()
    limits = [kv_tokens, getattr(text, "max_position_embeddings", None) or math.inf]
    rope = getattr(text, "rope_parameters", None) or {}
    for entry in (rope, *rope.values()):
        if isinstance(entry, dict) and entry.get("rope_type") == "longrope":
            limits.append(entry.get("original_max_position_embeddings") or math.inf)
    return int(min(limits))
