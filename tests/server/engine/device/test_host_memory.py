"""Memory of the host: zeros, and what is written while its pages are taken stays."""

import threading
import time

import numpy as np

from ladle.server.engine.device.host_memory import zeroed_memory


def test_what_is_written_while_pages_are_taken_stays() -> None:
    size = (1 << 26) + 4097
    memory = np.frombuffer(zeroed_memory(size), np.uint8)
    assert memory.size == size and memory.flags.writeable
    places = np.arange(0, size, 4096)
    memory[places] = 7
    until = time.monotonic() + 20
    while any(thread.name == "ladle-memory" for thread in threading.enumerate()) and time.monotonic() < until:
        time.sleep(0.01)
    assert (memory[places] == 7).all() and int(memory.sum(dtype=np.int64)) == 7 * len(places)
