"""A conversation in the terminal whose preferences change on the way."""

import os
import re
import select
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ladle.clients.arguments import not_among, parse_preference, slip_of
from ladle.clients.client import Client
from ladle.clients.display import complain, describe_steering, messages, output, pairs
from ladle.clients.errors import LadleError, NotFoundError, UsageError
from ladle.clients.family_responses import Family
from ladle.clients.painter import Painter
from ladle.clients.stream import Stream

HELP = """\
/prefer positive=0.8 concise=0.2   what to weigh (no argument: the family's default)
/method bone_soup                  how to steer (no argument: the family's default)
/strength 1.5                      how much (no argument: 1)
/trace                             colour tokens by how far control moved them or by expert, or stop it
/seed 7                            the same draw every time (no argument: a new one)
/tokens 200                        longest answer
/show                              what is set now
/reset                             forget the conversation
/help                              this
/quit                              leave (or Ctrl-D); Ctrl-C stops an answer
/prefer, /method and /strength turn the answer that is being written, too."""
_ON_THE_WAY = {"prefer": "preference", "method": "method", "strength": "strength"}


class ChatSession:
    """The state of one conversation: what was said, and the options of the next answer."""

    def __init__(self, client: Client, options: dict[str, Any]) -> None:
        self.client = client
        self.options = options
        self.history: list[dict[str, Any]] = []
        self.meanwhile: Callable[[], Iterable[str]] = lambda: ()
        """What was typed since it was asked last, while an answer is written."""
        self._commands: dict[str, Callable[[str], None]] = {
            "prefer": self._prefer,
            "method": self._method,
            "strength": lambda text: self._set("strength", _number(float, "strength", text)),
            "trace": self._trace,
            "seed": lambda text: self._set("seed", _number(int, "seed", text)),
            "tokens": lambda text: self._set("max_tokens", _number(int, "tokens", text)),
            "show": lambda text: self._show(),
            "reset": lambda text: self._reset(),
            "help": lambda text: output.print(HELP, markup=False),
        }

    def run(self, lines: Iterable[str] | None = None) -> None:
        """Converse until the lines end (those typed, if None) or one says /quit."""
        messages.print("Say something, or /help.", style="dim")
        if lines is None:
            self.meanwhile = _typed_meanwhile
        for line in _typed() if lines is None else lines:
            if line.strip() in ("/quit", "/exit"):
                return
            try:
                self.take(line)
            except LadleError as error:
                complain(str(error))

    def take(self, line: str) -> None:
        """One line: a command, or something said.

        Raises:
            LadleError: what came of it; the conversation is as before.
        """
        text = line.strip()
        if text.startswith("/"):
            name, _, argument = text[1:].partition(" ")
            command = self._commands.get(name)
            if command is None:
                slip = slip_of(name, self._commands)
                raise UsageError(f"there is no /{name}{slip}; /help lists what there is")
            command(argument.strip())
        elif text:
            self._say(text)

    def _say(self, text: str) -> None:
        conversation = [*self.history, {"role": "user", "content": text}]
        painter = Painter()
        with self.client.chat(conversation, stream=True, **self.options) as stream:
            try:
                for token in stream:
                    output.print(painter.paint(token.token), end="")
                    for line in self.meanwhile():
                        self._turn(stream, line.strip())
                answer = stream.result()
                warnings = answer.steering.warnings if answer.steering else []
                note = describe_steering(answer.steering, answer.tokens) if self.options.get("trace") else ""
            except KeyboardInterrupt:
                warnings, note = [], "stopped"
            finally:
                output.print()
        # What was said before a stop stays said.
        self.history = [*conversation, {"role": "assistant", "content": stream.text}]
        if self.options.get("trace"):
            messages.print(painter.legend())
        if note:
            messages.print(note, style="dim", markup=False)
        for warning in warnings:
            messages.print(f"note: {warning}", style="yellow", markup=False)

    def _family(self) -> Family:
        """The family that answers: the one that the model's name begins with, else the first."""
        named = re.split("[/@]", str(self.options.get("model") or ""), maxsplit=1)[0]
        served = self.client.families()
        return next((family for family in served if family.name == named), served[0])

    def _prefer(self, text: str) -> None:
        wanted = parse_preference(text) if text else None
        objectives = self._family().objectives if wanted else []
        for name in wanted or {}:
            if name not in objectives:
                raise UsageError(f"prefer: {not_among(name, objectives, 'objective')}")
        self._set("preference", wanted)

    def _method(self, text: str) -> None:
        methods = self._family().methods if text else {}
        usable = [name for name, status in methods.items() if status.available]
        if text in methods and text not in usable:
            raise UsageError(
                f"method: {text!r} is not available: {methods[text].reason}; available: {', '.join(usable)}"
            )
        if text and text not in usable:
            raise UsageError(f"method: {not_among(text, usable, 'method')}")
        self._set("method", text or None)

    def _turn(self, stream: Stream, line: str) -> None:
        """A command while an answer is written, which holds for the rest of it and for the next ones."""
        name, _, argument = line.removeprefix("/").partition(" ")
        option, before = _ON_THE_WAY.get(name), dict(self.options)
        try:
            if not line.startswith("/") or option is None or not argument.strip():
                allowed = "/prefer, /method and /strength with what they are to be; Ctrl-C stops the answer"
                raise UsageError(f"{line!r} is not allowed while an answer is written; allowed: {allowed}")
            self._commands[name](argument.strip())
            stream.steer(**{option: self.options[option]})
        except NotFoundError:
            messages.print("this answer had ended; it holds for the next one", style="dim")
        except LadleError as error:
            self.options = before
            complain(str(error))

    def _set(self, option: str, value: Any) -> None:
        if value is None:
            self.options.pop(option, None)
        else:
            self.options[option] = value
        self._show()

    def _trace(self, text: str) -> None:
        if text not in ("", "on", "off"):
            raise UsageError(f"trace: {text!r} is not allowed; allowed: on, off")
        on = text == "on" if text else not self.options.get("trace")
        self._set("trace", on or None)

    def _reset(self) -> None:
        self.history = []
        messages.print("forgotten", style="dim")

    def _show(self) -> None:
        shown = [
            f"{name} {pairs(value) if isinstance(value, dict) else shlex.quote(str(value))}"
            for name, value in self.options.items()
        ]
        messages.print(", ".join(shown) or "the family's defaults", style="dim", markup=False)


def _number(kind: type, name: str, text: str) -> Any:
    if not text:
        return None
    try:
        return kind(text)
    except ValueError:
        allowed = "a whole number" if kind is int else "a number"
        raise UsageError(f"{name}: {text!r} is not allowed; allowed: {allowed}") from None


def _typed() -> Iterable[str]:
    """Lines typed by a person, with editing and a history that outlives the session."""
    file = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "ladle" / "chat_history"
    try:
        import readline

        if file.is_file():
            readline.read_history_file(file)
        readline.set_history_length(1000)
    except (ImportError, OSError):  # no such library here, or no place to remember: typing works all the same
        readline = None  # type: ignore[assignment]
    try:
        while True:
            try:
                yield input("> ")
            except KeyboardInterrupt:
                output.print()
            except EOFError:
                output.print()
                return
    finally:
        if readline is not None:
            _remember(file, readline.write_history_file)


def _typed_meanwhile() -> Iterable[str]:
    """The lines that a person has ended since; none where it cannot be asked for them without waiting."""
    if os.name == "nt" or not sys.stdin.isatty():
        return
    while select.select([sys.stdin], [], [], 0)[0]:
        data = os.read(sys.stdin.fileno(), 4096)  # a terminal gives a line at a time
        if not data:
            return
        yield from data.decode(errors="replace").splitlines()


def _remember(file: Path, write: Callable[[str], None]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write(str(file))
    except OSError:
        messages.print(f"the history could not be kept in {file}", style="dim", markup=False)
