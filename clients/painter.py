"""Colours for the tokens of one answer: by the expert that wrote them, or by how far control moved them."""

from rich.text import Text

from ladle.clients.responses import Token

# KL(base, final) in nats, from which on a token is shown in a style: nothing happened, a little, much, all.
SHADES = ((1.0, "bold red"), (0.25, "yellow"), (0.05, "green"), (0.0, ""))
# Told apart with any kind of colour vision, by brightness if need be; after the last one they come again, underlined.
EXPERT_STYLES = ("cyan", "yellow", "magenta", "bright_blue", "green", "red")
ROUTER = "router"


class Painter:
    """Styles the tokens of one answer as they come.

    A token that an expert wrote has that expert's colour, always the same one within an answer; one that the router
    wrote by itself, asked no expert (Co-LLM), is dim. Other tokens are shaded by their shift. Without a trace there is
    nothing to show.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._written: dict[str, int] = {}

    def paint(self, token: Token) -> Text:
        """The token's text in its style; what it adds to a thought is dim."""
        if token.reasoning_content is not None:
            return Text(token.reasoning_content, style="dim")
        if token.expert is None and token.router is None:
            shift = token.shift or 0.0
            return Text(token.text, style=next((style for bound, style in SHADES if shift >= bound), ""))
        if token.shift is None:
            return Text(token.text)
        # The router's scores name all of them in the family's order, so that colours do not depend on who comes first.
        self._names.extend(name for name in token.router or {} if name not in self._names)
        if token.expert is not None and token.expert not in self._names:
            self._names.append(token.expert)
        writer = token.expert or ROUTER
        self._written[writer] = self._written.get(writer, 0) + 1
        return Text(token.text, style=self.style(token.expert))

    def style(self, expert: str | None) -> str:
        """The style of an expert of this answer; None is the router itself."""
        if expert is None:
            return "dim"
        again, place = divmod(self._names.index(expert), len(EXPERT_STYLES))
        return EXPERT_STYLES[place] + (" underline" if again else "")

    def legend(self) -> Text:
        """What the colours of the tokens so far mean; for experts also what share of the tokens they wrote."""
        if not self._written:
            line = Text("shift (nats): ", style="dim")
            for bound, style in reversed(SHADES):
                line.append(f">= {bound:g} ", style=style or "dim")
            return line
        line = Text("written by: ", style="dim")
        total = sum(self._written.values())
        for name in self._names:
            line.append(f"{name} {self._written.get(name, 0) / total:.0%} ", style=self.style(name))
        if ROUTER in self._written and ROUTER not in self._names:
            line.append(f"the router itself {self._written[ROUTER] / total:.0%} ", style=self.style(None))
        return line
