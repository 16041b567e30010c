"""``text_offset`` of completions: where each token begins in the text, whatever is held back meanwhile."""

import codecs
import random

import pytest
from asgi import client_of, events_of
from fake_engine import FakeEngine, fake_state
from seeds import fresh_seed
from tiny_models import VOCAB_SIZE

from ladle.merging.family.family import Family
from ladle.server.engine.requests.detokenizer import Detokenizer
from ladle.server.engine.requests.request import StepOutput
from ladle.server.openai.text_offsets import TextOffsets
from ladle.server.text.token_text import TokenText

pytestmark = pytest.mark.anyio
SPECIAL = {0, 1, 2}


class ScriptedEngine(FakeEngine):
    """Says exactly ``script``, token by token."""

    def __init__(self, script: list[int]) -> None:
        super().__init__()
        self.script = script
        self.max_context = 1000

    def tokens(self, request: object) -> list[int]:
        return self.script


async def ask(family: Family, engine: FakeEngine, **body: object) -> tuple[dict, dict]:
    """The choice as it comes whole, and the same put together from a stream."""
    async with client_of(fake_state(family, engine)) as client:
        whole = await client.post("/v1/completions", json={"logprobs": 1, **body})
        streamed = await client.post("/v1/completions", json={"logprobs": 1, "stream": True, **body})
    assert whole.status_code == streamed.status_code == 200, whole.text
    chunks = [event["choices"][0] for event in events_of(streamed.text) if event != "[DONE]"]
    joined = {
        "text": "".join(chunk["text"] for chunk in chunks),
        "logprobs": {
            key: [entry for chunk in chunks if chunk["logprobs"] for entry in chunk["logprobs"][key]]
            for key in ("tokens", "text_offset")
        },
    }
    return whole.json()["choices"][0], joined


def starts(tokens: TokenText, ids: list[int]) -> list[int]:
    """Where tokens begin in the text of ``ids``, from all of its bytes at once."""
    raw = [b"" if token in SPECIAL else tokens.raw(token) for token in ids]
    every = b"".join(raw)
    owner, place = [], 0
    # Which character each byte belongs to: a byte that does not lengthen the text belongs to what came before.
    for end in range(1, len(every) + 1):
        complete = every[:end].decode("utf-8", "replace")
        owner.append(len(complete) - 1)
    offsets = []
    for piece in raw:
        if not piece and codecs.getincrementaldecoder("utf-8")("replace").decode(every[:place]) != every[:place].decode(
            "utf-8", "replace"
        ):
            # A token without text inside a character: whether the next one goes on with the character is not known yet.
            offsets.append(owner[place - 1])
        else:
            offsets.append(owner[place] if place < len(owner) else len(every.decode("utf-8", "replace")))
        place += len(piece)
    return offsets


@pytest.mark.parametrize("echo", [False, True])
async def test_text_held_back_for_a_stop_string_has_its_place(family: Family, echo: bool) -> None:
    engine = FakeEngine("1, 2, 3, 4, 5 the end")
    front = "Count:" if echo else ""
    body = {"prompt": "Count:", "echo": echo, "temperature": 0, "max_tokens": 60}
    for stop in ([], ["  "], [", 9", "5 the enz"], ["e end"]):
        for choice in await ask(family, engine, stop=stop, **body):
            found = choice["logprobs"]
            text = front + "1, 2, 3, 4, 5 the end"
            assert choice["text"] == (text if stop != ["e end"] else text[:-5])
            place = 0
            for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
                if not token.startswith("<|"):
                    assert (offset, text[offset : offset + len(token)]) == (place, token), (stop, found)
                    place += len(token)


def test_a_token_without_text_lies_where_the_unfinished_character_does() -> None:
    tokenizer = FakeEngine().tokenizer
    tokens = TokenText(tokenizer)
    begin, *rest = tokenizer("\u2603", add_special_tokens=False).input_ids
    letter = tokenizer("a", add_special_tokens=False).input_ids[0]
    for ids, places in (([begin, 0, *rest], [0] * (2 + len(rest))), ([begin, 0, letter], [0, 0, 1])):
        offsets = TextOffsets(tokens)
        outputs = [StepOutput("0", token, "", "", 0.0, (), None, None, 1, 0, n) for n, token in enumerate(ids, 1)]
        assert [offsets.next(output) for output in outputs] == places


def test_special_tokens_without_a_part_to_play_give_no_text() -> None:
    tokenizer = FakeEngine().tokenizer
    tokenizer.backend_tokenizer.add_special_tokens(["<file_sep>"])
    separator = tokenizer.backend_tokenizer.token_to_id("<file_sep>")
    tokens = TokenText(tokenizer)
    assert tokens.is_special(separator) and separator not in tokenizer.all_special_ids
    snow, letter = (tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids for text in ("\u2603", "a"))
    ids = [*letter, separator, *snow, *letter]
    offsets, detokenizer = TextOffsets(tokens), Detokenizer(tokenizer, ids[:1])
    found = []
    for count, token in enumerate(ids, 1):
        piece, shown, _ = detokenizer.push(token)
        found.append(offsets.next(StepOutput("0", token, piece, shown, 0.0, (), None, None, 1, 0, count)))
    assert found == [0, 1, *[1] * len(snow), 2]


async def test_random_tokens_lie_where_their_bytes_do(family: Family) -> None:
    rng = random.Random(fresh_seed())
    tokens = TokenText(FakeEngine().tokenizer)
    characters = [FakeEngine().tokenizer(text, add_special_tokens=False).input_ids for text in "aé雨🌧\u2603"]
    for _ in range(60):
        ids = []
        while len(ids) < 30:
            # Characters of several tokens, some of them cut, and tokens of any kind.
            own = list(rng.choice(characters))
            ids += own if rng.random() < 0.7 else own[: rng.randint(0, len(own))]
            ids += [rng.randrange(VOCAB_SIZE - 60)] if rng.random() < 0.2 else []
        ids = [token for token in ids if token != 2 and tokens.raw(token)]
        engine = ScriptedEngine(ids)
        stop = rng.sample(["\ufffda", "aaé雨", "雨🌧🌧\u2603"], rng.randint(0, 2))
        echoed = [token for token in rng.choices(ids, k=rng.randint(1, 6)) if token not in SPECIAL] or [70]
        plain, streamed = await ask(family, engine, prompt=[70], stop=stop, max_tokens=len(ids))
        expected = starts(tokens, ids)
        for choice in (plain, streamed):
            offsets = choice["logprobs"]["text_offset"]
            assert offsets == expected[: len(offsets)], (ids, stop)
        both = await ask(family, engine, prompt=echoed, echo=True, stop=stop, max_tokens=len(ids))
        front = b"".join(map(tokens.raw, echoed)).decode("utf-8", "replace")
        expected = starts(tokens, echoed) + [len(front) + place for place in expected]
        for choice in both:
            offsets = choice["logprobs"]["text_offset"]
            assert offsets == expected[: len(offsets)], (echoed, ids, stop)
