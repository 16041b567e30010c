"""What is kept of answers: each caller's newest ones, within bounds."""

import gc
import random

from seeds import fresh_seed

from ladle.server.access.callers import Caller
from ladle.server.fields.chat_messages import Message
from ladle.server.replies.kept_responses import Kept, ResponseStore


def caller(name: str) -> Caller:
    return Caller(name, frozenset())


def kept(name: str, characters: int = 0) -> Kept:
    message = Message.model_construct(role="assistant", content="x" * characters)
    return Kept.of({"id": name, "output": [{"id": f"item-{name}"}]}, [message], [])


def test_the_newest_stay_and_use_makes_new() -> None:
    store, one, other = ResponseStore(3, 1 << 30), caller("one"), caller("other")
    store.put(other, kept("mine"))
    for number in range(3):
        store.put(one, kept(str(number)))
    assert store.get(one, "0") is not None
    store.put(one, kept("3"))
    assert [store.get(one, str(number)) is not None for number in range(4)] == [True, False, True, True]
    assert store.get(other, "mine") is not None and store.get(one, "mine") is None
    assert store.items(one, {"item-3", "item-mine"}) == {"item-3": {"id": "item-3"}}
    assert store.delete(one, "3") and not store.delete(one, "3") and not store.delete(other, "0")


def test_sizes_are_bounded() -> None:
    rng = random.Random(fresh_seed())
    largest = 100_000
    store, one = ResponseStore(1000, largest), caller("one")
    sizes = {}
    for number in range(300):
        entry = kept(str(number), rng.randrange(10_000))
        sizes[str(number)] = entry.size
        store.put(one, entry)
        assert entry.size >= len(entry.messages[0].content)
        assert sum(size for name, size in sizes.items() if store.items(one, {f"item-{name}"})) <= largest
    assert store.get(one, "299") is not None
    store.put(one, kept("huge", largest))
    assert store.get(one, "huge") is None and store.get(one, "299") is not None


def test_none_are_kept_where_none_may_be_and_keys_take_theirs_along() -> None:
    nothing, one = ResponseStore(0, 1 << 30), caller("one")
    nothing.put(one, kept("a"))
    assert nothing.get(one, "a") is None
    store = ResponseStore(5, 1 << 30)
    store.put(one, kept("a"))
    assert len(store._kept) == 1
    del one
    gc.collect()
    assert len(store._kept) == 0
