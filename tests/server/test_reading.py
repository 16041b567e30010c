"""Texts on their way to tokens: bounded, paid for, and left alone once nobody wants them."""

import asyncio
import json
import random
import threading
from pathlib import Path

import pytest
from asgi import Call, client_of, wait_until
from fake_engine import FakeEngine, fake_state
from seeds import fresh_seed
from tiny_models import tiny_tokenizer
from transformers import PreTrainedTokenizerFast

from ladle.merging.family.family import Family, load_family
from ladle.server.access.api_keys import ApiKey, ApiKeys
from ladle.server.access.callers import Limits
from ladle.server.app import build_app
from ladle.server.engine.requests.tokenizer import load_tokenizer
from ladle.server.text.text_bound import TextBound, _longest

pytestmark = pytest.mark.anyio
ALPHABETS = [
    [chr(code) for code in range(32, 127)],
    [" ", "\n", "\t"],
    [chr(code) for code in (*range(0x300, 0x330), *range(0x410, 0x450), 0x1F600, 0x65E5)],
    ["<|im_start|>", "<|endoftext|>", "hello", "!!!!", "----"],
]


def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    return {"tiny": tiny_tokenizer(), "demo": load_tokenizer(load_family("demo").base_path)}


@pytest.mark.parametrize("name", ["tiny", "demo"])
def test_no_text_has_fewer_tokens_than_its_bound(name: str) -> None:
    rng = random.Random(fresh_seed())
    tokenizer = tokenizers()[name]
    bound = TextBound(tokenizer)
    assert bound.longest is not None
    tightest = 0.0
    for _ in range(200):
        alphabet = rng.choice(ALPHABETS)
        text = "".join(rng.choices(alphabet, k=rng.randint(1, 600))) * rng.choice([1, 1, 5])
        found = len(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)
        assert bound.least_tokens(text) <= found
        tightest = max(tightest, bound.least_tokens(text) / found)
    longest = max(tokenizer.get_vocab(), key=len)
    text = tokenizer.decode(tokenizer.convert_tokens_to_ids([longest]))
    assert bound.least_tokens(text * 50) >= 49 or len(text.encode()) < bound.longest, tightest


def test_where_one_token_may_cover_any_text_nothing_is_bounded() -> None:
    spec = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    assert _longest(spec)
    added = {"content": "<x>", "lstrip": False, "rstrip": True}
    for change in (
        {"model": {**spec["model"], "type": "WordPiece"}},
        {"normalizer": {"type": "BertNormalizer"}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Strip"}]}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"added_tokens": [*spec["added_tokens"], added]},
    ):
        assert _longest({**spec, **change}) is None, change
    shrunk = _longest({**spec, "normalizer": {"type": "NFC"}})
    assert shrunk == 3 * (_longest({**spec, "normalizer": None}) or 0)


def keyed(family: Family, engine: FakeEngine, folder: Path, **settings: object) -> tuple[object, str]:
    key, entry = ApiKey.new("alice", ("generate",), Limits(None, 100_000))
    (folder / "keys").write_text(entry.line() + "\n")
    state = fake_state(family, engine, **settings)
    state.keys = ApiKeys.read(folder / "keys")
    return state, key


VIEWS = {
    "method": "custom",
    "terms": [{"source": "base", "system": f"Be {n}. " * 20, "weight": 0.1} for n in range(32)],
}


async def test_reading_ends_when_its_client_leaves(family: Family, engine: FakeEngine, tmp_path: Path) -> None:
    """No further text is read, and what was read is paid for."""
    engine.max_context = 4000
    state, key = keyed(family, engine, tmp_path)
    encoded, slow = [], threading.Event()
    backend = engine.tokenizer.backend_tokenizer

    class Counting:
        def encode_batch_fast(self, texts: list[str], **options: object) -> object:
            encoded.append(len(texts[0]))
            if len(encoded) == 3:
                slow.wait(30)
            return backend.encode_batch_fast(texts, **options)

        def __getattr__(self, name: str) -> object:
            return getattr(backend, name)

    engine.tokenizer._tokenizer = Counting()
    body = {"prompt": ["hello you " * 300] * 100, "steering": VIEWS, "max_tokens": 1}
    headers = {"authorization": f"Bearer {key}"}
    call = Call(build_app(state), "/v1/completions", json.dumps(body).encode(), headers)  # type: ignore[arg-type]
    await wait_until(lambda: len(encoded) == 3)
    call.leave()
    await asyncio.wait_for(call.task, 60)
    slow.set()
    await asyncio.sleep(0.05)
    assert len(encoded) == 3 and not engine.requests
    caller = state.keys.find(key)  # type: ignore[attr-defined]
    paid = 100_000 - caller._tokens
    assert 5000 < paid < 6000, "two texts were read"


async def test_views_count_before_they_are_read(family: Family, engine: FakeEngine) -> None:
    """What the queue could not hold is refused as soon as that is seen."""
    engine.max_context = 4000
    state = fake_state(family, engine, max_queue_tokens=200_000)
    encoded = []
    backend = engine.tokenizer.backend_tokenizer

    class Counting:
        def encode_batch_fast(self, texts: list[str], **options: object) -> object:
            encoded.append(len(texts[0]))
            return backend.encode_batch_fast(texts, **options)

        def __getattr__(self, name: str) -> object:
            return getattr(backend, name)

    engine.tokenizer._tokenizer = Counting()
    async with client_of(state) as client:
        body = {"prompt": ["hello you " * 300] * 100, "steering": VIEWS, "max_tokens": 1}
        refused = await client.post("/v1/completions", json=body)
    error = refused.json()["error"]
    assert refused.status_code == 400 and error["param"] == "prompt" and "at most 200000 may wait" in error["message"]
    assert len(encoded) < 33 * 12
