"""Server-sent events from bytes, wherever the network cut them."""

import re

_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventDecoder:
    """Takes the bytes of a response as they come and gives the data of each complete event.

    Lines are split before they are decoded, so a cut inside a character, a line end or an event does no harm.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[str]:
        """The data of the events that ``chunk`` completes; lines of one event are joined by newlines."""
        events = []
        for line in self._lines(chunk):
            if not line:
                if self._data:
                    events.append("\n".join(self._data))
                self._data = []
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" ").decode())
        return events

    def _lines(self, chunk: bytes) -> list[bytes]:
        buffer = self._rest + chunk
        # A carriage return at the very end may be half of a line end.
        held = 1 if buffer.endswith(b"\r") else 0
        complete = buffer[: len(buffer) - held]
        *lines, rest = _LINE_END.split(complete)
        self._rest = rest + buffer[len(buffer) - held :]
        return lines
