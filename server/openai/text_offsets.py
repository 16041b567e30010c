"""Where each token begins in a text, in characters, whatever part of the text may be shown yet."""

from __future__ import annotations

import codecs

from ladle.server.engine.requests.request import StepOutput
from ladle.server.text.token_text import TokenText


class Utf8Count:
    """Counts the characters of UTF-8 that comes in pieces, which may end within a character."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def given_up(self, raw: bytes) -> bool:
        """Whether an unfinished character is none, because ``raw`` does not continue it."""
        unfinished = self._decoder.getstate()[0]
        if not unfinished or not raw:
            return False
        return codecs.getincrementaldecoder("utf-8")("replace").decode(unfinished + raw[:1]).startswith("\ufffd")

    def push(self, raw: bytes) -> str:
        """The characters that ``raw`` completes."""
        return self._decoder.decode(raw)

    def reset(self) -> None:
        """Begin anew."""
        self._decoder.reset()


class TextOffsets:
    """Offsets of the tokens of one answer. A token that continues a character begins where the character does.

    The count follows what was drawn, not what is shown: text that is held back, because it may become a stop string,
    has its place, and so has the stop string itself. A token without text, such as a special one, lies where an
    unfinished character before it begins: whether the next token goes on with that character is not known yet.
    """

    def __init__(self, tokens: TokenText, start: int = 0) -> None:
        """``start``: characters before the answer, of an echoed prompt."""
        self._tokens = tokens
        self._whole = start  # characters of the text that the decoder has given out
        self._within = 0  # characters completed since then, as far as bytes tell
        self._count = Utf8Count()

    def next(self, output: StepOutput) -> int:
        """The offset of the token of ``output``."""
        silent = self._tokens.is_special(output.token) and not output.token_text
        raw = b"" if silent or output.token < 0 else self._tokens.raw(output.token)
        offset = self._whole + self._within + self._count.given_up(raw)
        self._within += len(self._count.push(raw))
        if output.token_text:
            # The decoder's own text is what counts: it may write a token otherwise than its bytes say. It may also
            # have waited for this token to give out several characters, the last of them complete.
            self._whole += len(output.token_text)
            self._within = 0
            self._count.reset()
        return offset
