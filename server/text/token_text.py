"""One token as text and as bytes, for logprobs."""

from __future__ import annotations

import re
from collections.abc import Iterable

from transformers import PreTrainedTokenizerFast

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_level_alphabet() -> dict[str, int]:
    """Character -> byte of GPT-2's byte-level BPE: printable Latin-1 stands for itself, the rest for U+0100 and on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class TokenText:
    """Strings and bytes of a tokenizer's tokens, remembered once asked for.

    ``utf8`` is exact where a token is only part of a character; ``text`` shows U+FFFD there.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._backend = tokenizer.backend_tokenizer
        added = self._backend.get_added_tokens_decoder()
        # More than those that have a part to play, such as the one that ends a text: decoding leaves all of them out.
        silent = [index for index, token in added.items() if token.special]
        self._special = frozenset(tokenizer.all_special_ids) | frozenset(silent)
        self._added = {index: token.content for index, token in added.items()}
        self._ids_of_added = {content: index for index, content in self._added.items()}
        decoder = self._backend.decoder
        self._byte_level = byte_level_alphabet() if "ByteLevel" in repr(decoder) else None
        self._known: dict[int, tuple[str, tuple[int, ...]]] = {}

    def text(self, token: int) -> str:
        """The token as a string; special tokens by their names."""
        return self._entry(token)[0]

    def key(self, token: int) -> str:
        """The token as OpenAI's completions write it: ``text``, but ``bytes:\\xe2\\x98`` for a part of a character, so
        that two such tokens differ."""
        text, raw = self._entry(token)
        return text if "\ufffd" not in text else "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def utf8(self, token: int) -> list[int]:
        """The token's UTF-8 bytes."""
        return list(self.raw(token))

    def raw(self, token: int) -> bytes:
        """The token's UTF-8 bytes; those of its name, for a special token."""
        return bytes(self._entry(token)[1])

    def named(self, texts: Iterable[str]) -> frozenset[int]:
        """The added tokens that are called as one of ``texts``: a special one gives no text that could match."""
        return frozenset(self._ids_of_added[text] for text in texts if text in self._ids_of_added)

    def is_special(self, token: int) -> bool:
        """Whether the token gives no text, such as the one that ends a text."""
        return token in self._special

    def _entry(self, token: int) -> tuple[str, tuple[int, ...]]:
        entry = self._known.get(token)
        if entry is None:
            raw = self._raw(token)
            entry = self._known[token] = (raw.decode("utf-8", "replace"), tuple(raw))
        return entry

    def _raw(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        piece = self._backend.id_to_token(token)
        if piece is None:
            return b""
        if self._byte_level is not None and all(character in self._byte_level for character in piece):
            return bytes(self._byte_level[character] for character in piece)
        fallback = _BYTE_FALLBACK.fullmatch(piece)
        if fallback is not None:
            return bytes([int(fallback[1], 16)])
        # SentencePiece marks spaces; decoding the token alone would drop a leading one.
        return piece.replace("\u2581", " ").encode()


def finite(logprob: float) -> float:
    """A logprob that JSON can carry; -9999 stands for "never", as in OpenAI's API."""
    return max(-9999.0, logprob)
