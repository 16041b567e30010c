"""Text from tokens, one token at a time: never half a character, never a piece of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

_PRIMING_TOKENS = 8


class StopStrings:
    """Finds the earliest stop string in a growing text and says how much may be shown."""

    def __init__(self, stops: Sequence[str], include: bool = False) -> None:
        """``include``: the stop string is shown."""
        self._stops = tuple(stops)
        self._include = include
        self._held = ""
        self.met: str | None = None
        """The stop string that ended the text."""

    def push(self, piece: str, stops: bool = True) -> tuple[str, bool]:
        """Add ``piece``; returns (text that may be shown now, whether a stop string was met).

        Shown text ends before the stop string, or with it. The longest tail that begins a stop string is kept back.
        Where nothing ``stops`` the text yet, a stop string that ends in ``piece`` is text like any other.
        """
        if not self._stops:
            return piece, False
        text = self._held + piece
        # Of two stops that end in the same piece the one that begins first wins.
        matches = [(position, stop) for stop in self._stops if (position := text.find(stop)) >= 0] if stops else []
        if matches:
            self._held = ""
            position, stop = min(matches, key=lambda entry: entry[0])
            self.met = stop
            return text[: position + (len(stop) if self._include else 0)], True
        # The longest tail of the text that could still become a stop string; of several strings the longest counts.
        keep = max(self._tail(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :] if keep else ""
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """What was kept back, once no more text can come."""
        rest, self._held = self._held, ""
        return rest

    @property
    def holds(self) -> bool:
        """Whether anything is kept back."""
        return bool(self._held)

    @staticmethod
    def _tail(text: str, stop: str) -> int:
        for length in range(min(len(stop) - 1, len(text)), 0, -1):
            if text.endswith(stop[:length]):
                return length
        return 0


class Detokenizer:
    """The text of one continuation."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        prompt: Sequence[int],
        stops: Sequence[str] = (),
        skip_special_tokens: bool = True,
        include_stop: bool = False,
    ) -> None:
        """``skip_special_tokens``: they give no text. ``include_stop``: the stop string that is met is shown."""
        self._skip = skip_special_tokens
        self._tokenizer = tokenizer.backend_tokenizer
        # A few prompt tokens prime the decoder, so that a first piece keeps the space in front of its word. A prompt
        # that ends within a character cannot: the decoder would give its text away together with our first piece.
        tail = list(prompt[-_PRIMING_TOKENS:])
        if self._tokenizer.decode(tail, skip_special_tokens=self._skip).endswith("\ufffd"):
            tail = []
        self._stream = DecodeStream(ids=tail, skip_special_tokens=self._skip)
        self._stops = StopStrings(stops, include_stop)
        self._pending: list[int] = []

    def copy(self) -> Detokenizer:
        """One that goes on from here by itself."""
        other = copy(self)
        other._stream, other._stops, other._pending = copy(self._stream), copy(self._stops), list(self._pending)
        return other

    @property
    def stop(self) -> str | None:
        """The stop string that was met."""
        return self._stops.met

    @property
    def holds(self) -> bool:
        """Whether any text is kept back."""
        return bool(self._pending) or self._stops.holds

    def push(self, token: int, stops: bool = True) -> tuple[str, str, bool]:
        """Add ``token``; returns (this token's own text, text that may be shown now, stop string met, if it
        ``stops``)."""
        self._pending.append(token)
        # None until the bytes so far end a character: tokens may cut one in two.
        piece = self._stream.step(self._tokenizer, token) or ""
        if piece:
            self._pending.clear()
        shown, stopped = self._stops.push(piece, stops)
        return piece, shown, stopped

    def finish(self) -> str:
        """The rest of the text: what stop strings kept back and an unfinished character as U+FFFD."""
        rest = self._tokenizer.decode(self._pending, skip_special_tokens=self._skip) if self._pending else ""
        self._pending.clear()
        shown, stopped = self._stops.push(rest)
        return shown if stopped else shown + self._stops.flush()
