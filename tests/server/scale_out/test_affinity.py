"""Names of prefixes: equal where the state that a replica keeps would be, and only there."""

import random
import string

import pytest
from seeds import fresh_seed

from ladle.server.scale_out.affinity import AffinityTable, affinity_keys

LETTERS = string.ascii_letters + " éß雨"


def text(rng: random.Random, length: int) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(length))


def shared(left: list[bytes], right: list[bytes]) -> int:
    return sum(a == b for a, b in zip(left, right, strict=False))


def test_prompts_share_as_many_names_as_pieces() -> None:
    rng = random.Random(fresh_seed())
    for _ in range(50):
        common, one, other = (text(rng, rng.randrange(600)) for _ in range(3))
        left, right = affinity_keys({"prompt": common + "1" + one}), affinity_keys({"prompt": common + "2" + other})
        assert shared(left, right) == len(common) // 64
        assert len(left) == (len(common) + 1 + len(one)) // 64


def test_a_next_turn_has_all_names_of_the_one_before() -> None:
    rng = random.Random(fresh_seed())
    messages = [{"role": "user", "content": text(rng, 300)}]
    first = affinity_keys({"messages": messages})
    more = [*messages, {"role": "assistant", "content": text(rng, 100)}, {"role": "user", "content": "and?"}]
    assert len(first) >= 4 and affinity_keys({"messages": more})[: len(first)] == first
    ids = [rng.randrange(9000) for _ in range(200)]
    assert affinity_keys({"prompt": [*ids, 5]})[:8] == affinity_keys({"prompt": ids})[:8] != []


@pytest.mark.parametrize("change", [{"model": "demo/base"}, {"steering": {"preference": {"a": 2}}}])
def test_other_weights_have_other_names(change: dict) -> None:
    """State is kept by the weights that it was computed on."""
    body = {"model": "demo", "prompt": "x" * 300, "steering": {"preference": {"a": 1}, "trace": False}}
    assert shared(affinity_keys(body), affinity_keys({**body, **change})) == 0
    traced = {**body, "steering": {"trace": True, "preference": {"a": 1}}, "temperature": 0.5, "stream": True}
    assert affinity_keys(body) == affinity_keys(traced) != []


def test_merged_weights_have_a_name_of_their_own() -> None:
    body = {"prompt": "short", "steering": {"preference": {"a": 1}}}
    assert affinity_keys(body) == [] and len(affinity_keys(body, materialised=True)) == 1
    same = affinity_keys({**body, "prompt": "x" * 64}, materialised=True)
    assert same[0] == affinity_keys(body, materialised=True)[0] and len(same) == 2


@pytest.mark.parametrize(
    "body", [{}, {"prompt": None}, {"prompt": []}, {"prompt": [[]]}, {"messages": "x"}, {"prompt": 5}]
)
def test_what_makes_no_sense_has_no_names(body: dict) -> None:
    assert affinity_keys(body) == []


def test_the_longest_prefix_decides() -> None:
    rng = random.Random(fresh_seed())
    keys = [rng.randbytes(8) for _ in range(6)]
    table = AffinityTable()
    assert table.best(keys) is None
    table.note(keys[:2], "a")
    table.note(keys[:4], "b")
    assert table.best(keys) == table.best(keys[:4]) == "b"
    table.note(keys[:1], "c")
    assert table.best(keys[:1]) == "c" and table.best(keys) == "b"
    table.keep({"a", "c"})
    assert table.best(keys) == "c"


def test_the_oldest_is_forgotten() -> None:
    table = AffinityTable(most=10)
    for number in range(30):
        table.note([bytes([number])], "a")
    assert table.best([bytes([19])]) is None and table.best([bytes([20])]) == "a"
