"""Blocks: who holds them, what of them may be reused, and which are handed out first."""

import random

import pytest
from seeds import fresh_seed

from ladle.server.engine.kv.block_manager import BlockManager, OutOfBlocks


def test_block_manager_under_random_work() -> None:
    rng = random.Random(fresh_seed())
    for _ in range(30):
        manager = BlockManager(rng.randint(2, 20))
        names = [bytes([i]) for i in range(12)]
        content: dict[int, bytes] = {}
        tables: list[list[int]] = []
        for _ in range(200):
            action = rng.random()
            if action < 0.4:
                try:
                    block = manager.allocate()
                except OutOfBlocks:
                    assert manager.free == 0
                    continue
                content.pop(block, None)
                assert all(block not in table for table in tables), "handed out twice"
                tables.append([block])
                if rng.random() < 0.7:
                    name = rng.choice(names)
                    if name not in content.values():
                        content[block] = name
                    manager.publish(block, name)
            elif action < 0.6:
                wanted = rng.sample(names, rng.randint(1, 4))
                known = manager.known(wanted)
                found = manager.match(wanted)
                assert len(found) == known
                assert [content[block] for block in found] == wanted[:known]
                if found:
                    tables.append(found)
            elif tables:
                manager.release(tables.pop(rng.randrange(len(tables))))
            manager.check_integrity(tables)
        for table in tables:
            manager.release(table)
        manager.check_integrity([])
        assert manager.free == manager.total


def test_integrity_check_finds_what_is_wrong() -> None:
    manager = BlockManager(6)
    table = [manager.allocate(), manager.allocate()]
    manager.check_integrity([table])
    for wrong in ([], [table, table], [[*table, 5]], [table[:1]]):
        with pytest.raises(AssertionError):
            manager.check_integrity(wrong)
    manager.release(table)
    with pytest.raises(AssertionError):
        manager.release(table)
    with pytest.raises(ValueError):
        BlockManager(1)


def test_prefixes_outlive_their_continuations() -> None:
    """Of a freed table the tail is handed out first, so that the shared beginning stays findable longest."""
    manager = BlockManager(5)
    table = [manager.allocate() for _ in range(4)]
    for index, block in enumerate(table):
        manager.publish(block, bytes([index]))
    manager.release(table)
    assert [manager.allocate(), manager.allocate()] == [table[3], table[2]]
    assert manager.known([bytes([i]) for i in range(4)]) == 2
