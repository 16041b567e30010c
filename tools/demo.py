"""What `make demo` does once all is installed: serve the built-in family, and show two things that it can do.

First one prompt to the plain base and under a preference for each objective, answered in one batch; then questions
that the base gets wrong and experts, chosen token by token, get right. Then the server stays up until Ctrl-C; with CI
set, it is stopped.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ladle.clients import Client, Family, Generation, LadleError
from ladle.clients.painter import Painter
from ladle.recipes.sweeps.server import bound

ROOT = Path(__file__).resolve().parent.parent
LOG = ROOT / "build" / "demo.log"
PROMPT = "What is a computer?"
QUESTIONS = (
    "Ben has 12 coins, gives 4 to Tom and then finds 6. How many coins does Ben have now?",
    "Give this as JSON with the keys name, city and age: In Rome lives Anna, aged 43.",
)
PORT = 8000
START_SECONDS = 900  # the base may first have to be converted, on a slow disk
STOP_SECONDS = 40
MAX_TOKENS = 72

console = Console(highlight=False)


def main() -> int:
    started = time.monotonic()
    port = PORT if is_free(PORT) else free_port()
    with served(port) as server, Client(f"http://127.0.0.1:{port}") as client:
        await_ready(server, client, started)
        family = client.families()[0]
        console.print(f"\n[bold]{PROMPT}[/bold]  (one batch, one set of weights in memory)")
        answers = ask(client, columns(family), side_by_side)
        seconds = time.monotonic() - started
        console.print(f"answered {seconds:.0f} s after the start{memory(server.pid)}; {speed(answers)}")
        if family.methods["fusion_route"].available:
            console.print("\n[bold]Experts, chosen token by token[/bold]  (who wrote a token is its colour)")
            ask(client, expert_answers(), question_by_question)
        if os.environ.get("CI"):
            return 0
        console.print(advice(client.url, family), markup=False, soft_wrap=True)
        server.wait()
        raise SystemExit(f"the server has stopped; its log is {LOG}")


@contextmanager
def served(port: int) -> "Iterator[subprocess.Popen[bytes]]":
    """`ladle serve demo` in the background, drained and stopped on the way out."""
    LOG.parent.mkdir(exist_ok=True)
    ladle = Path(sys.executable).with_name("ladle")
    with LOG.open("wb") as log:
        # A session of its own: Ctrl-C is ours to handle, or both would get it.
        server = subprocess.Popen(
            bound([str(ladle), "serve", "demo", "--port", str(port), "--quick-start"]),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield server
    finally:
        if server.poll() is None:
            console.print("stopping the server")
            server.terminate()
            try:
                server.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()


def await_ready(server: "subprocess.Popen[bytes]", client: Client, started: float) -> None:
    """Wait until requests are taken, showing what the server says it is doing."""
    said = ""
    with console.status("starting the server") as status:
        while not client.ready():
            if server.poll() is not None:
                raise SystemExit(f"error: the server did not start:\n{LOG.read_text(errors='replace')}")
            seconds = time.monotonic() - started
            if seconds > START_SECONDS:
                raise SystemExit(f"error: the server was not ready after {START_SECONDS} s; its log is {LOG}")
            lines = LOG.read_text(errors="replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "starting the server")
            status.update(Text(f"{seconds:.0f} s: {last}"))
            if not console.is_terminal and last != said:
                console.print(last, markup=False)
            said = last
            time.sleep(0.2)


@dataclass
class DemoAnswer:
    """One answer while it comes; ``result`` once it is there, ``failure`` if it never will be."""

    title: str
    prompt: str
    options: dict[str, Any]
    text: str = ""
    painted: Text = field(default_factory=Text)
    painter: Painter = field(default_factory=Painter)
    result: Generation | None = None
    failure: LadleError | None = None
    seconds: float = 0.0

    def fetch(self, client: Client) -> None:
        started = time.monotonic()
        try:
            with client.chat(self.prompt, temperature=0, stream=True, **self.options) as stream:
                for token in stream:
                    self.text += token.text
                    self.painted.append_text(self.painter.paint(token.token) if token.token else Text(token.text))
                self.result = stream.result()
        except LadleError as error:
            self.failure = error
        self.seconds = time.monotonic() - started


def columns(family: Family) -> list[DemoAnswer]:
    """The plain base, then all weight on one objective; with two objectives also halfway between them."""
    wishes = [{objective: 1.0} for objective in family.objectives[:3]]
    if len(wishes) == 2:
        wishes.insert(1, dict.fromkeys(family.objectives, 0.5))
    answers = [DemoAnswer("the plain base", PROMPT, {"method": "base", "max_tokens": MAX_TOKENS})]
    for wish in wishes:
        title = ", ".join(f"{name} {weight:g}" for name, weight in wish.items())
        answers.append(DemoAnswer(title, PROMPT, {"preference": wish, "max_tokens": MAX_TOKENS}))
    return answers


def expert_answers() -> list[DemoAnswer]:
    """The base's answer and FusionRoute's to every question. No penalty: sums repeat their numbers."""
    plain = {"max_tokens": 40, "repetition_penalty": 1}
    return [
        DemoAnswer(title, question, {"method": method, "trace": method != "base", **plain})
        for question in QUESTIONS
        for title, method in (("the plain base", "base"), ("FusionRoute", "fusion_route"))
    ]


def ask(
    client: Client, answers: list[DemoAnswer], show: Callable[[list[DemoAnswer]], RenderableType]
) -> list[DemoAnswer]:
    """All answers at once, shown as they come."""
    threads = [threading.Thread(target=answer.fetch, args=(client,), daemon=True) for answer in answers]
    for thread in threads:
        thread.start()
    if console.is_terminal:
        with Live(console=console, refresh_per_second=12) as live:
            while any(thread.is_alive() for thread in threads):
                live.update(show(answers))
                time.sleep(0.05)
            live.update(show(answers))
    else:
        for thread in threads:
            thread.join()
        console.print(show(answers))
    for answer in answers:
        if answer.failure:
            raise SystemExit(f"error: {answer.failure}; the server's log is {LOG}")
        if not answer.text.strip():
            raise SystemExit(f"error: the answer of {answer.title} is empty; the server's log is {LOG}")
    return answers


def side_by_side(answers: list[DemoAnswer]) -> Table:
    """One column per answer: what steered it, its text, the coefficients its weights were mixed with."""
    table = Table(expand=True)
    for answer in answers:
        table.add_column(answer.title, ratio=1)
    table.add_row(*(Text(answer.text) for answer in answers), end_section=True)
    table.add_row(*(Text(coefficients(answer)) for answer in answers), style="dim")
    return table


def question_by_question(answers: list[DemoAnswer]) -> Table:
    """One row per question; the tokens of an expert in its colour, and what share each expert wrote."""
    table = Table(expand=True, show_lines=True)
    table.add_column("question", ratio=2)
    for answer in answers[:2]:
        table.add_column(answer.title, ratio=3)
    for base, routed in zip(answers[::2], answers[1::2], strict=True):
        told = Text("\n").join([routed.painted, routed.painter.legend()]) if routed.result else routed.painted
        table.add_row(base.prompt, Text(base.text), told)
    return table


def coefficients(answer: DemoAnswer) -> str:
    steering = answer.result.steering if answer.result else None
    values = (steering.coefficients if steering else None) or {}
    return "\n".join(f"{value:+.2f} {member}" for member, value in values.items())


def speed(answers: list[DemoAnswer]) -> str:
    tokens = sum(answer.result.usage.completion_tokens for answer in answers if answer.result and answer.result.usage)
    return f"{tokens} tokens at {tokens / max(answer.seconds for answer in answers):.0f} tokens/s, all together"


def memory(pid: int) -> str:
    """The most memory the server has used, where the system tells."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return ""
    return f", with {int(peak.split()[1]) / 2**20:.1f} GiB of memory at most"


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def advice(url: str, family: Family) -> str:
    first, last = family.objectives[0], family.objectives[-1]
    return f"""
Playground: {url}   (open it in a browser; Ctrl-C here stops the server)

In another terminal:

  .venv/bin/ladle chat --url {url} -p {first}=0.8,{last}=0.2 --trace

  .venv/bin/python -c '
from ladle.clients import Client
with Client("{url}") as ladle:
    print(ladle.chat("{PROMPT}", preference={{"{first}": 0.8, "{last}": 0.2}}, max_tokens=64).text)'

  curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{{
    "model": "{family.name}", "messages": [{{"role": "user", "content": "{PROMPT}"}}], "max_tokens": 64,
    "steering": {{"preference": {{"{first}": 0.8, "{last}": 0.2}}}}}}'

  Any OpenAI client: base_url="{url}/v1", model="{family.name}@{first}=0.8,{last}=0.2"

API: {url}/docs. The server's log: {LOG.relative_to(ROOT)}.
"""


def interrupted(number: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupted)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        console.print("bye")
