"""A GGUF as a folder of safetensors, config and tokenizer."""

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from ladle.merging.checkpoints.checkpoint_reader import CheckpointReader, read_json
from ladle.merging.checkpoints.gguf_facts import GGUFFacts
from ladle.merging.checkpoints.library_lock import loading
from ladle.merging.checkpoints.new_folder import require_space
from ladle.merging.exceptions import FamilyError


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Let transformers parse a GGUF's metadata once instead of three times, and build its name map once instead of
    once a module: both are pure functions of their arguments, and this halves the time of a conversion."""
    import gguf

    with ExitStack() as stack:
        for name in ("GGUFReader", "get_tensor_name_map"):
            stack.enter_context(patch.object(gguf, name, functools.cache(getattr(gguf, name))))
        yield


def _name_ends(tokenizer: Any, facts: GGUFFacts) -> None:
    """Take the tokens that begin, end and pad texts from the file: transformers 5.17 takes those of the architecture
    for them, and no text would end where it should."""
    for name, key in (("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding")):
        index = facts.special(key)
        if index is not None:
            setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(index))


def _carry_over(config: Any, tokenizer: Any, facts: GGUFFacts) -> int | list[int] | None:
    """Scaled positions into ``config``; returns what ends a text or a turn, and has ``config`` say it."""
    text = config.get_text_config()
    scaled = facts.rope_parameters(text.max_position_embeddings)
    if scaled:
        # Models with two kinds of layers have parameters for each; the file's scaling is that of full attention.
        own = dict(text.rope_parameters or {})
        if isinstance(own.get("full_attention"), dict):
            own["full_attention"] = {**own["full_attention"], **scaled}
        else:
            own |= scaled
        text.rope_parameters = own
    ends = facts.ends() or ([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])
    end = ends[0] if len(ends) == 1 else ends or None
    if end is not None:
        config.eos_token_id = end
    return end


def convert_gguf(gguf: Path, out: Path) -> None:
    """Dequantise ``gguf`` into ``out`` as float32 safetensors with config, generation config and tokenizer.

    float32, because the values of 4-bit blocks (scale times integer plus minimum) do not fit bfloat16's 8 bits.

    Raises:
        FamilyError: transformers cannot read the file, the disk has no room, or a tensor holds NaN or infinity.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        with loading(f"converting {gguf}"), _parsed_once():
            loaded: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, trust_remote_code=False)
            tokenizer: Any = AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
            facts = GGUFFacts(gguf)
            _name_ends(tokenizer, facts)
    except (OSError, ValueError, KeyError, ImportError, NotImplementedError) as error:
        raise FamilyError(gguf, f"transformers cannot read this GGUF: {error}") from error
    require_space(out, sum(weight.nbytes for weight in loaded.parameters()))
    config = loaded.config
    # save_pretrained refuses a model that calls itself quantised, and a loader would believe it: so the values go
    # into a fresh model of the same shape.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.float32
    end = _carry_over(config, tokenizer, facts)
    # No memory and no random numbers for values that are replaced at once.
    with loading(f"converting {gguf}"), torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    reader = CheckpointReader(out)
    try:
        reader.check_finite()
    except FamilyError as error:
        raise FamilyError(gguf, error.reason, error.tensor) from None
    if not read_json(out / "config.json").get("vocab_size"):
        raise FamilyError(gguf, "the converted config has no vocab_size")
