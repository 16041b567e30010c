"""Colours of tokens: shades for shifts, a colour an expert, and a legend that says what was seen."""

from ladle.clients.painter import EXPERT_STYLES, Painter
from ladle.clients.responses import Token

SCORES = {"math": 1.0, "json": 0.5, "chat": -1.0}


def token(text: str, expert: str | None = None, **fields: object) -> Token:
    return Token.model_validate({"id": 1, "text": text, "expert": expert, **fields})


def test_an_expert_has_one_colour_whoever_comes_first() -> None:
    for order in (("json", "math", "json"), ("math", "json", "json")):
        painter = Painter()
        styles = {name: painter.paint(token("x", name, shift=0.1, router=SCORES)).style for name in order}
        assert styles == {"math": EXPERT_STYLES[0], "json": EXPERT_STYLES[1]}
    assert painter.legend().plain == "written by: math 33% json 67% chat 0% "


def test_what_the_router_writes_itself_is_dim() -> None:
    painter = Painter()
    assert painter.paint(token("a", None, shift=0.1, router=SCORES)).style == "dim"
    assert painter.paint(token("b", "chat", shift=2.0, router=SCORES)).style == EXPERT_STYLES[2]
    assert painter.legend().plain == "written by: math 0% json 0% chat 50% the router itself 50% "


def test_more_experts_than_colours_are_told_apart() -> None:
    painter = Painter()
    names = [f"expert-{index}" for index in range(2 * len(EXPERT_STYLES))]
    scores = dict.fromkeys(names, 0.0)
    styles = [painter.paint(token("x", name, shift=0.0, router=scores)).style for name in names]
    assert len(set(styles)) == len(names)


def test_other_methods_are_shaded_by_shift() -> None:
    painter = Painter()
    assert [painter.paint(token("x", shift=shift)).style for shift in (0.0, 0.1, 0.5, 3.0)] == [
        "", "green", "yellow", "bold red",
    ]  # fmt: skip
    assert painter.legend().plain.startswith("shift (nats)")


def test_without_a_trace_nothing_is_coloured() -> None:
    assert Painter().paint(token("x", "math")).style == ""
    assert Painter().paint(token("x")).style == ""
