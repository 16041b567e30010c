"""How the layers of a model attend, learned from a forward of two tokens; and why a model cannot be served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ladle.merging.exceptions import FamilyError
from ladle.server.engine.forward.attention import AttentionGroup, AttentionProbe, LayerAttention, PagedContext
from ladle.server.engine.kv.cache import BLOCK_SIZE, KVCache

_TOKENS = 2


@torch.inference_mode()
def learn_attention(model: Any, config_file: Path) -> dict[int, LayerAttention]:
    """How each layer attends and what it stores, by layer.

    The model is called as a step calls it, so that what it does not understand is found here. It may be on the meta
    device.

    Raises:
        FamilyError: it cannot run on the KV pool, as a sentence.
    """
    # First what the configuration says by itself, then what one forward shows.
    text = model.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    if kinds:
        raise refusal(config_file, f"it has layers of type {', '.join(sorted(kinds))}")
    if not getattr(model, "_supports_attention_backend", False):
        raise refusal(config_file, "its attention cannot be replaced")
    if model.get_output_embeddings() is None:
        raise refusal(config_file, "it has no output head over its vocabulary")
    # A forward of two tokens passes every attention call; on the meta device it needs no weights.
    probe = AttentionProbe()
    ids = torch.zeros(1, _TOKENS, dtype=torch.int64, device=model.device)
    positions = torch.arange(_TOKENS, device=model.device)[None]
    try:
        output = model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=positions[0], paged=probe)
    except (TypeError, AttributeError) as error:
        raise refusal(config_file, f"its forward cannot be called by token and position ({_one_line(error)})") from None
    if tuple(output.logits.shape[:2]) != (1, _TOKENS):
        raise refusal(config_file, "it does not give the logits of single tokens")
    _require_plain(probe, model, config_file)
    if model.device.type != "meta":
        require_positions(model, config_file)
    return probe.layers


class _Attended(Exception):
    """A forward has come to its first attention."""


class _Stop(AttentionProbe):
    def note(self, *seen: Any) -> None:
        raise _Attended


def has_position_table(model: Any) -> bool:
    """Whether the model looks anything up besides its tokens, so that its positions may be rows of a table."""
    tokens = model.get_input_embeddings()
    return any(isinstance(module, nn.Embedding) and module is not tokens for module in model.modules())


@torch.inference_mode()
def require_positions(model: Any, config_file: Path) -> None:
    """A token's position, as a step gives it, must be what the model counts by itself: decoders of RoBERTa's kind begin
    behind their padding. ``model`` is anywhere but on the meta device.

    Raises:
        FamilyError: it counts otherwise.
    """
    if not has_position_table(model):
        return
    ids = torch.tensor([[5, 6]], device=model.device)
    # The rows that any position table is asked for must be the same with and without our ``position_ids``.
    looked_up = []
    for given in ({}, {"position_ids": torch.arange(2, device=model.device)[None]}):
        indices: list[Tensor] = []
        # Every embedding says which rows it is asked for, up to the first attention, where the forward is broken off.
        tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
        hooks = [
            table.register_forward_pre_hook(lambda _, given, into=indices: into.append(given[0])) for table in tables
        ]
        try:
            model(input_ids=ids, use_cache=False, paged=_Stop(), **given)
        except _Attended:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        looked_up.append([row.flatten().tolist() for row in indices])
    if looked_up[0] != looked_up[1]:
        raise refusal(config_file, "it counts positions otherwise than 0, 1, 2 and on")


@torch.inference_mode()
def try_pool(model: Any, layers: dict[int, LayerAttention]) -> None:
    """Run three tokens of one sequence and then one of each of two over a pool of two blocks. Raises what fails."""
    device = model.device
    arange = torch.arange(BLOCK_SIZE, device=device)
    # Shapes and options that the pool cannot take fail here, at the start, and not in somebody's request.
    cache = KVCache([layers[layer].shape for layer in range(len(layers))], 2, model.dtype, device)
    prefill = AttentionGroup(0, 3, 0, arange[None, :3], arange[None, :1], arange)
    decode = AttentionGroup(0, 2, 0, arange[[3, 0], None], arange[[0, 1], None], arange)
    # A prefill of three tokens, then a decode step of two lanes of different lengths.
    for slot_mapping, group in ((arange[:3], prefill), (arange[[3, 0]] + arange[[0, 1]] * BLOCK_SIZE, decode)):
        positions = group.positions.reshape(1, -1)
        ids = torch.zeros_like(positions)
        context = PagedContext(cache, slot_mapping, [group])
        model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=positions[0] * 0, paged=context)


def _require_plain(probe: AttentionProbe, model: Any, config_file: Path) -> None:
    """Raise FamilyError for whatever the probe saw that the KV pool does not have."""
    layers = model.config.get_text_config().num_hidden_layers
    if probe.sinks:
        raise refusal(config_file, "its layers have attention sinks")
    if sorted(probe.layers) != list(range(layers)):
        raise refusal(config_file, f"only {len(probe.layers)} of {layers} layers attend in a way that can be replaced")
    if probe.calls != layers:
        raise refusal(config_file, f"its {layers} layers attend {probe.calls} times for a token")
    if probe.both_ways:
        raise refusal(config_file, "its attention is not causal: a token sees those that come after it")
    if probe.options:
        raise refusal(config_file, f"its attention takes {', '.join(sorted(probe.options))}, which the KV pool lacks")


def refusal(config_file: Path, reason: str) -> FamilyError:
    """The error of an architecture that is known and cannot be served."""
    return FamilyError(config_file, f"this architecture cannot be served: {reason}")


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
