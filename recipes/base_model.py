"""The base model in float32 on the CPU, its tokenizer, and the prompt format shared by training and serving."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


@dataclass(frozen=True)
class LoadedBase:
    """A frozen causal model in evaluation mode and its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def eos(self) -> int:
        """The token that ends a turn."""
        token = self.tokenizer.eos_token_id
        if not isinstance(token, int):
            raise ValueError("the base's tokenizer names no end-of-turn token")
        return token

    def prompt_ids(self, prompt: str, system: str | None = None) -> list[int]:
        """Token ids of one user message in the model's own chat template, ready for the answer's first token."""
        messages = [{"role": "user", "content": prompt}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        ids = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        return list(ids)

    def text(self, tokens: list[int]) -> str:
        """The answer as a reader sees it: special tokens and outer blanks dropped."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True)).strip()

    def count_tokens(self, text: str) -> int:
        """Tokens in a text, without special tokens."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def load_base(spec: str, device: torch.device | str = "cpu", threads: int = 1) -> LoadedBase:
    """Loads a base in float32, on one thread unless told otherwise: the setting in which a recipe repeats exactly.

    Args:
        spec: anything `ladle.merging.checkpoints.base_checkpoint.resolve_base` takes.
        device: where it computes.
        threads: of torch, on the CPU.
    """
    from ladle.merging.checkpoints.base_checkpoint import resolve_base
    from ladle.merging.checkpoints.library_lock import loading

    prepare_process(threads)
    folder = Path(resolve_base(spec))
    with loading(f"reading {folder}"):
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model.requires_grad_(False)
    return LoadedBase(model.eval().to(device), tokenizer)


def prepare_process(threads: int = 1) -> None:
    """One torch thread (sums in one order) or more, and an allocator that keeps its pages.

    A training step frees and asks again for hundreds of MB; with glibc's defaults each goes back to the kernel and is
    faulted in again, which was measured to make training 1.5 times slower.
    """
    torch.set_num_threads(threads)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(_M_MMAP_MAX, 0)
            libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
            libc.mallopt(_M_TOP_PAD, 256 * 2**20)
