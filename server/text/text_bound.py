"""How many tokens a text has at least, seen from its size: what cannot fit is refused without being tokenised."""

from __future__ import annotations

import json
from typing import Any

from transformers import PreTrainedTokenizerFast

_SHRINKS = {None: 1, "Prepend": 1, "NFC": 3}
"""Normalizers, with how many times smaller (in bytes of UTF-8) they can make a text."""


class TextBound:
    """The longest token of a vocabulary, in bytes of text.

    It is known where every byte of a text ends in exactly one token: byte-level BPE, and BPE that falls back on bytes.
    Elsewhere (one token for any unknown word, normalizers that leave characters out, special tokens that take the
    spaces around them along) a text of any size may be one token, and nothing is bounded.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.longest = _longest(json.loads(tokenizer.backend_tokenizer.to_str()))
        """Bytes of text that one token covers at most; None where that is not known."""

    def least_tokens(self, text: str) -> int:
        """A number of tokens that ``text`` has at least."""
        return self.of_bytes(len(text.encode("utf-8", "surrogatepass")))

    def of_bytes(self, size: int) -> int:
        """A number of tokens that a text of ``size`` bytes of UTF-8 has at least."""
        return 0 if self.longest is None else -(-size // self.longest)


def _longest(spec: dict[str, Any]) -> int | None:
    model = spec.get("model") or {}
    pieces = _steps(spec.get("pre_tokenizer"), "pretokenizers")
    byte_level = any(piece.get("type") == "ByteLevel" for piece in pieces)
    if model.get("type") != "BPE" or not (byte_level or model.get("byte_fallback")):
        return None
    if any(piece.get("behavior") == "Removed" or piece.get("type") == "Whitespace" for piece in pieces):
        return None
    added = spec.get("added_tokens") or ()
    if any(token.get("lstrip") or token.get("rstrip") for token in added):
        return None
    shrinks = 1
    for step in _steps(spec.get("normalizer"), "normalizers"):
        kind = step.get("type")
        # Replacing a space with the mark of a word's beginning makes a text longer.
        if kind == "Replace" and step.get("pattern") == {"String": " "} and step.get("content"):
            continue
        if kind not in _SHRINKS:
            return None
        shrinks *= _SHRINKS[kind]
    # In a byte-level vocabulary each character stands for one byte.
    sizes = [len(token) if byte_level else len(token.encode()) for token in model.get("vocab") or {}]
    sizes += [len(token["content"].encode()) for token in added]
    return shrinks * max(sizes) if sizes else None


def _steps(part: dict[str, Any] | None, name: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer, those of sequences within it included."""
    if part is None:
        return []
    if part.get("type") == "Sequence":
        return [step for inner in part.get(name) or () for step in _steps(inner, name)]
    return [part]
